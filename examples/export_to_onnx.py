"""Write an ONNX file that holds the factors and run it in ONNX Runtime, small in memory or fast. Needs extra `onnx`."""

import tempfile
from pathlib import Path

import onnx_ir
import onnxruntime
import torch

import fxhash
from fxhash import zoo


def main() -> None:
    gm = fxhash.transform(zoo.create("resnet20", width=32), compress=0.1).eval()
    model = fxhash.lower_for_deploy(gm)  # `gm` itself can be exported in the same way
    image = torch.randn(2, 3, 32, 32)

    # optimize=False, since the exporter's optimiser would multiply small factors and store what they give.
    with torch.no_grad():
        program = torch.onnx.export(
            model,
            (image,),
            dynamo=True,
            optimize=False,
            verbose=False,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    # Without stack traces of every operator.
    onnx_ir.passes.common.ClearMetadataAndDocStringPass()(program.model)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        program.save(path, external_data=False)
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
