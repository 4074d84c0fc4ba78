"""Copy the weights of a model out of the files that they were read from."""

from torch import nn


def copy_out_of_files(model: nn.Module) -> None:
    """Give every tensor of a model on the CPU memory of its own.

    transformers maps safetensors files into memory and uses the mapping as the weights. Whoever writes another
    checkpoint over such a file would change the scores of a running service, or end it (scoring-traps 29).

    Args:
        model: model as it was loaded; tensors of several modules that are one tensor stay one.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
