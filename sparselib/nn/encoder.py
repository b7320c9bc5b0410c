"""Torch's encoders, which in inference may read the weights of layers that are sparse."""

import warnings

from torch import nn

from sparselib.nn.sparse_layer import sparse_layers


def encoders(model: nn.Module) -> list[nn.Module]:
    """Return torch's encoders and their layers that contain a sparse layer."""
    kinds = nn.TransformerEncoder | nn.TransformerEncoderLayer
    return [
        module
        for module in model.modules()
        if isinstance(module, kinds) and sparse_layers(module)
    ]


def decline_fused_inference(encoder: nn.Module) -> None:
    """Keep an encoder from kernels that read dense weights, and from the tensors for them."""
    if isinstance(encoder, nn.TransformerEncoder):
        encoder.use_nested_tensor = False
    elif isinstance(encoder, nn.TransformerEncoderLayer):
        encoder.activation_relu_or_gelu = 0


def let_torch_decide(encoder: nn.Module) -> None:
    """Undo `decline_fused_inference`: ask torch again what it asked at construction."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # why it declines
        if isinstance(encoder, nn.TransformerEncoderLayer):
            like = nn.TransformerEncoderLayer(
                2, 1, 1, activation=encoder.activation, device="meta"
            )
            encoder.activation_relu_or_gelu = like.activation_relu_or_gelu
        elif isinstance(encoder, nn.TransformerEncoder):
            whole = nn.TransformerEncoder(
                encoder.layers[0], 0, None, encoder.enable_nested_tensor
            )
            encoder.use_nested_tensor = whole.use_nested_tensor
