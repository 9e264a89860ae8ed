"""What quire_kernels raises.

KernelError
├── KernelInputError (ValueError)    a tensor's shape, dtype, stride or device breaks an op's contract
├── KernelSettingError (ValueError)  QUIRE_KERNELS or QUIRE_ISA asks for what is not there
└── KernelBuildError (RuntimeError)  the C++ variants could not be compiled
"""


class KernelError(Exception):
    """Root of the tree; never raised itself."""


class KernelInputError(KernelError, ValueError):
    """An argument breaks the op's contract. The message names the rule and what was given."""


class KernelSettingError(KernelError, ValueError):
    """An environment setting has a value that cannot be honoured on this machine."""


class KernelBuildError(KernelError, RuntimeError):
    """The compiler is missing or refused the sources."""
