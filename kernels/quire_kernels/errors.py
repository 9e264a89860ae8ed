"""What quire_kernels raises.

KernelError
├── KernelInputError (ValueError)    a tensor breaks an op's contract: shape, dtype, stride, index
└── KernelSettingError (ValueError)  QUIRE_KERNELS or QUIRE_ISA asks for what is not there
"""


class KernelError(Exception):
    """Root of the tree; never raised itself."""


class KernelInputError(KernelError, ValueError):
    """An argument breaks the op's contract. The message names the rule and what was given."""


class KernelSettingError(KernelError, ValueError):
    """An environment setting has a value that cannot be honoured on this machine."""
