"""Write an ONNX file that holds the factors and run it in ONNX Runtime, small in memory or fast. Needs extra `onnx`."""

import tempfile
from pathlib import Path

import onnxruntime
import torch

import fxhash
from fxhash import zoo


def main() -> None:
    image = torch.randn(2, 3, 32, 32)
    gm = fxhash.transform(zoo.create("resnet20", width=32), compress=0.1, example_inputs=(image,)).eval()
    # `gm` itself can be exported in the same way, but runs slower.
    model = fxhash.lower_for_deploy(gm, device=fxhash.DeviceProfile.onnx_runtime())

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        fxhash.export_onnx(model, (image,), path, dynamic_shapes=({0: torch.export.Dim("batch")},))
        plan = gm.smh_generator.plan
        print(f"{path.stat().st_size / 1e3:.0f} kB on disk, {4 * plan.trainable_before / 1e3:.0f} kB dense")

        # By default, ONNX Runtime multiplies factors once when it loads a weight that is generated. To keep them:
        small = onnxruntime.InferenceSession(path, disabled_optimizers=["ConstantFolding"])
        expanded = onnxruntime.InferenceSession(path)
        for session in (small, expanded):
            (logits,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
            with torch.inference_mode():
                print(f"largest difference {(torch.from_numpy(logits) - model(image)).abs().max():.0e}")


if __name__ == "__main__":
    main()
