"""A stub: SGLang imports names of `sgl_kernel`, of which there is no CPU build. Its torch-native path calls none but
those of `verification.py`, which are there."""

import stub_package
import verification

stub_package.become(__name__)

import sgl_kernel.speculative  # noqa: E402  (a module of the stub)

globals().update({kernel.__name__: kernel for kernel in verification.KERNELS})
sgl_kernel.speculative.reconstruct_indices_from_tree_mask = verification.reconstruct_indices_from_tree_mask
