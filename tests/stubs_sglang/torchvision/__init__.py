"""A stub: SGLang imports torchvision for pictures, and the ordinary build breaks beside a CPU's torch."""

import stub_package

__version__ = "0.0"

stub_package.become(__name__)
