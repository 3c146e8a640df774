"""The way of the tutorials: random weights, two exports, a simplifier, ONNX Runtime, a look at the difference.

Dynamic batch, FP32 and FP16, both compared with PyTorch at the example's batch; no engine, no bundle, no proof at
other batch sizes. ``python naive_export.py NETWORK FOLDER [LARGEST_BATCH]``.
"""

import sys
from pathlib import Path


def main(name: str, folder: str, largest: str = "32") -> None:
    import numpy as np
    import onnx
    import onnxruntime
    import onnxsim
    import torch

    from engineworks.models import find

    model = find(name).build().eval()
    x = torch.randn(2, *find(name).input_shape)
    batch = torch.export.Dim("batch", min=1, max=int(largest))
    with torch.no_grad():
        expected = model(x).numpy()
    for kind, module, example in (("fp32", model, x), ("fp16", None, x.half())):
        path = Path(folder) / f"{name}-{kind}.onnx"
        torch.onnx.export(
            module if module is not None else model.half(),
            (example,),
            path,
            dynamo=True,
            verify=kind == "fp32",
            dynamic_shapes=({0: batch},),
            verbose=False,
        )
        if kind == "fp32":
            simpler, _ = onnxsim.simplify(onnx.load(path))
            onnx.save(simpler, path)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        got = session.run(None, {session.get_inputs()[0].name: example.numpy()})[0]
        print(f"{name} {kind}: largest difference {np.abs(expected - got).max():.3g}")


if __name__ == "__main__":
    main(*sys.argv[1:])
