"""What the lab's rooms share: records and lines, documents, an engine, intervals, tables, plots."""
