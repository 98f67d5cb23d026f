"""``sgpn export``: the networks of weights as ONNX files, for engines other than PyTorch and other languages."""

import argparse
import logging

DESCRIPTION = (
    "Write the networks of weights as ONNX files, beside a copy of the weights that they read: a bundle, which `sgpn restore "
    "--weights BUNDLE` takes without PyTorch. Every file is checked against PyTorch on a real face."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments, and what runs."""
    add = parser.add_argument
    add("--weights", default="default", metavar="NAME|FILE", help="name of weights that ship, or a checkpoint file")
    add("-o", "--output", required=True, metavar="BUNDLE", help="folder for the files")
    add(
        "--precision",
        default="fp32",
        choices=("fp32", "fp16"),
        help="numbers that the generator computes with; fp16 is for GPUs, and the file holds its weights",
    )
    add("--pt2", action="store_true", help="also write PyTorch's own exported programs, NAME.pt2")
    parser.set_defaults(run=run)


def run(weights: str, output: str, precision: str, pt2: bool) -> None:
    """Writes the bundle and tells how far each file is from PyTorch.

    Raises:
        CheckpointError: the weights cannot be used. ExportError: see :func:`sgpn_model.restore.exporter.export`.
    """
    from sgpn_model.restore.exporter import export

    logging.basicConfig(level=logging.WARNING, format="sgpn: %(message)s")
    logging.getLogger("sgpn").setLevel(logging.INFO)  # it takes a minute
    bundle = export(weights, output, precision, pt2)
    for part, measures in bundle.manifest.agreement.items():
        told = ", ".join(f"{measure} {value:.2g}" for measure, value in measures.items())
        print(f"{bundle.part(part).name}: against PyTorch: {told}")
    print(f"written: {bundle.folder}")
