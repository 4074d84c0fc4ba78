"""What ends a run that is not wrong in itself."""


class RunStopped(RuntimeError):
    """Something around a run is not as it has to be; what it has done is kept, and it goes on when that is mended."""
