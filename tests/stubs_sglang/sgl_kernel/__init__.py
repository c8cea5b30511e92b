"""A stub: SGLang imports names of `sgl_kernel`, of which there is no CPU build. Its torch-native path calls none."""

import stub_package

stub_package.become(__name__)
