"""Experts of a transformers model that are read one by one; `../offloading.py` puts it together."""
