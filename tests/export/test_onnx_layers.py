"""Quantized layers as ONNX operators."""

import onnxruntime
import torch

from lightning_compress.export.onnx_layers import OPSET, as_onnx_operators
from lightning_compress.models.modeling_quantized import QuantizedLinear
from lightning_compress.quantization.modules import pack_weights_


def test_dynamic_scales_survive_the_fusions_of_onnx_runtime(tmp_path):
    layer = QuantizedLinear(
        64, 48, bits=8, group_size=0, activations="dynamic", smoothing=False, bias=True
    ).eval()
    generator = torch.Generator().manual_seed(0)
    pack_weights_(layer, torch.randn(48, 64, generator=generator))
    rows = torch.randn(3, 5, 64, generator=generator) * torch.logspace(-3, 3, 5).view(1, 5, 1)
    model = torch.nn.Sequential(layer).eval()
    wanted = model(rows)
    with as_onnx_operators(model, "onnxruntime"):
        torch.onnx.export(
            model.eval(),
            (rows,),
            tmp_path / "one.onnx",
            dynamo=True,
            opset_version=OPSET,
            verbose=False,
        )
    options = onnxruntime.SessionOptions()
    # Without it sums of full-range weights saturate on CPUs without VNNI.
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(tmp_path / "one.onnx", options)  # with all that it fuses
    [found] = session.run(None, {session.get_inputs()[0].name: rows.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), wanted, rtol=1e-4, atol=1e-6)
