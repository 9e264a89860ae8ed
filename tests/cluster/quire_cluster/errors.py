"""What can go wrong while the test cluster is brought up.

ClusterError
├── PrerequisiteError   this machine lacks something; the message says what and what to do
├── CommandError        a program that was run ended with another exit code than 0
├── NotRunningError     the cluster is needed and is not up
└── NotReadyError       something did not become ready in its time
"""


class ClusterError(Exception):
    """Base of all errors whose message is meant for the person at the terminal."""


class PrerequisiteError(ClusterError):
    """The machine lacks something that the chosen provider needs."""


class CommandError(ClusterError):
    """A program failed; the message carries its command line and its last lines."""


class NotRunningError(ClusterError):
    """The verb needs a running cluster."""


class NotReadyError(ClusterError):
    """Something that was started did not become ready within its time."""
