"""Define the error of a run that stops because of something around it, and can be resumed."""


class RunStopped(RuntimeError):
    """The error of a run whose surroundings are not as they must be, such as its service or engine.

    The run itself is not at fault. Its state is kept, and it resumes when the cause is fixed.
    """
