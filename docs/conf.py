"""How `make docs` makes the site: Sphinx reads the Markdown here as it is, and every warning is an error."""

project = "lynx-moe"
copyright = "the lynx-moe authors, Apache-2.0"
extensions = ["myst_parser"]
exclude_patterns = ["README.md"]  # index.rst includes it: on a code host it is the list of pages, here the first page
myst_heading_anchors = 4  # links to headings are checked down to this depth
nitpicky = True
html_theme = "furo"
html_title = "lynx-moe"
html_show_sphinx = False
html_copy_source = False
