"""*text*: a deeper mixture of experts, trained on prose and code that Debian's and PyPI's packages carry."""
