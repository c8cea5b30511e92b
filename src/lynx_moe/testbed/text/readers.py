"""Documents of a source: each reader takes its files and yields texts, paragraphs between empty lines."""

import gzip
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

SKIPPED = {"test", "tests", "testing", "idlelib", "lib2to3", "turtledemo", "site-packages", "encodings", "pydoc_data"}
MAX_CODE_BYTES, MAX_LINE = 100_000, 200
HTML_BLOCKS = "//p|//li|//dd|//dt|//h1|//h2|//h3|//h4|//blockquote"
HTML_DROPPED = "//nav|//script|//style|//footer|//pre|//table|//*[@role='navigation']|//*[@class='sphinxsidebar']"


def plain(files: Iterable[Path]) -> Iterator[str]:
    """Text files as they are."""
    for file in files:
        yield file.read_text(encoding="utf-8", errors="ignore")


def html(files: Iterable[Path]) -> Iterator[str]:
    """The paragraphs, list items and headings of pages; code, tables and navigation left out."""
    try:
        from lxml import etree
        from lxml import html as parser
    except ImportError:
        raise LookupError("pages are read with lxml, which is not installed: pip install lxml") from None

    for file in files:
        page = file.read_bytes()
        try:  # many pages are in UTF-8 and do not say so; those that say something else are not in it
            page.decode()
            encoding = "utf-8"
        except UnicodeDecodeError:
            encoding = None
        try:
            tree = parser.fromstring(page, parser=parser.HTMLParser(encoding=encoding))
        except (etree.ParserError, ValueError):  # an empty page
            continue
        for node in tree.xpath(HTML_DROPPED):
            node.drop_tree()
        lines = []
        for node in tree.xpath(HTML_BLOCKS):
            if node.tag in ("li", "dd", "blockquote") and node.xpath(".//p|.//li|.//dd"):
                continue  # its parts come by themselves
            lines.append(" ".join(node.text_content().replace("¶", "").split()))
        yield "\n\n".join(lines)


def sword(files: Iterable[Path]) -> Iterator[str]:
    """Chapters of a SWORD module: zlib blocks that a file of (offset, size, unpacked size) lists."""
    for file in files:
        packed = file.read_bytes()
        table = file.with_suffix(file.suffix[:-2] + "zs").read_bytes()
        for offset, size, _ in struct.iter_unpack("<III", table):
            if size:
                markup = zlib.decompress(packed[offset : offset + size]).decode("utf-8", errors="ignore")
                for chapter in re.split(r"<chapter [^>]*>", markup):
                    chapter = re.sub(r"<note\b.*?</note>", "", chapter, flags=re.S)
                    chapter = re.sub(r"<(div|title|/title|lg|/lg|milestone)\b[^>]*>", "\n\n", chapter)
                    yield re.sub(r" +", " ", re.sub(r"<[^>]*>", " ", chapter))


def novels(files: Iterable[Path]) -> Iterator[str]:
    """Chapters of the novels in an R data base: zlib streams of serialised vectors of lines."""
    for file in files:
        packed = file.read_bytes()
        while packed:
            stream = zlib.decompressobj()
            values = stream.decompress(packed[4:])
            packed = stream.unused_data
            lines, at = [], 0
            while (at := values.find(b"\x00\x09", at)) >= 0:
                (size,) = struct.unpack_from(">i", values, at + 2)
                text = values[at + 6 : at + 6 + size]
                lines.append(text.decode("utf-8", errors="ignore"))
                at += 6 + size
            yield from re.split(r"\n(?=chapter [ivxl\d]+\b)", "\n".join(lines), flags=re.I)


def dictionary(files: Iterable[Path]) -> Iterator[str]:
    """Twenty paragraphs of a dictd dictionary at a time."""
    for file in files:
        paragraphs = gzip.decompress(file.read_bytes()).decode("utf-8", errors="ignore").split("\n\n")
        for start in range(0, len(paragraphs), 20):
            yield "\n\n".join(paragraphs[start : start + 20])


def glosses(files: Iterable[Path]) -> Iterator[str]:
    """Fifty definitions of WordNet at a time, each behind its words."""
    for file in files:
        entries = []
        for line in file.read_text(encoding="utf-8").splitlines():
            facts, bar, gloss = line.partition(" | ")
            if bar and not line.startswith(" "):
                fields = facts.split()
                words = [fields[4 + 2 * i].replace("_", " ") for i in range(int(fields[3], 16))]
                entries.append(f"{', '.join(words)}: {gloss.strip()}")
        for start in range(0, len(entries), 50):
            yield "\n\n".join(entries[start : start + 50])


def manual(files: Iterable[Path]) -> Iterator[str]:
    """Manual pages: requests of roff are dropped, what remains of their words is kept."""
    for file in files:
        if file.is_symlink():
            continue
        lines = []
        for line in gzip.decompress(file.read_bytes()).decode("utf-8", errors="ignore").splitlines():
            line = re.sub(r"\\f.|\\&|\\\|", "", line).replace("\\-", "-")
            if line.startswith(("'", ".\\")):
                continue
            if line.startswith("."):
                request, _, rest = line[1:].partition(" ")
                is_break = request in ("PP", "Pp", "LP", "TP", "IP", "SH", "Sh", "SS", "Ss", "It", "P", "sp")
                lines.append(("\n" if is_break else "") + rest.replace('"', ""))
            else:
                lines.append(line)
        yield "\n".join(lines)


def python(files: Iterable[Path]) -> Iterator[str]:
    """Source files from their first import or definition on, without tests, tables and giants."""
    for file in files:
        source = file.read_text(encoding="utf-8", errors="ignore")
        start = re.search(r"^(import|from|def|class|@) ?", source, re.M)
        wide = max(map(len, source.splitlines()), default=0) > MAX_LINE
        if start and source.isascii() and not wide and len(source) <= MAX_CODE_BYTES:
            yield source[start.start() :]


READERS: dict[str, Callable[[Iterable[Path]], Iterator[str]]] = {
    reader.__name__: reader for reader in (plain, html, sword, novels, dictionary, glosses, manual, python)
}


def find(root: Path, pattern: str) -> list[Path]:
    """The files below `root` that `pattern` means, sorted, without tests."""
    return sorted(f for f in root.glob(pattern) if f.is_file() and not SKIPPED.intersection(f.relative_to(root).parts))
