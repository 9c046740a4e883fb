"""Packaging of ssm_jax."""

import pathlib
import re

from setuptools import find_packages, setup

ROOT = pathlib.Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "ssm_jax/__init__.py").read_text())[1]

MEDICAL = [
    "highdicom>=0.25,<0.29",
    "nibabel>=5.2,<6",
    "pydicom>=3.0.2,<4",
    "pylibjpeg>=2.0,<3",
    "pylibjpeg-libjpeg>=2.1,<3",
    "pylibjpeg-openjpeg>=2.3,<3",
    "pyjpegls>=1.4,<2",
]
ONNX = ["onnx>=1.17,<2", "onnxruntime>=1.20,<2"]
SERVE = ["python-multipart>=0.0.34,<0.1", "starlette>=0.46,<2", "uvicorn>=0.30,<1"]

setup(
    name="ssm-jax",
    version=VERSION,
    description="The COVID-19 single-shot model (SSM): lesions and class of a CT slice, in JAX",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=[*find_packages(include=["ssm_jax*"]), "ssm_jax.configs"],
    # The configurations lie at the top of the checkout, and in the package where it is installed.
    package_dir={"ssm_jax.configs": "configs"},
    package_data={
        "ssm_jax": [f"**/*.{kind}" for kind in ("css", "html", "js", "json", "md", "npz")]
    },
    install_requires=[
        "absl-py>=2.1,<3",
        "array-record>=0.5,<1",
        "flatbuffers>=24.3,<27",  # jax.export writes with it
        "flax>=0.10,<0.14",
        "grain>=0.2.10,<0.3",
        # needed by tensorflow-datasets, which does not say so
        "importlib-resources>=5,<8",
        "jax>=0.7,<0.12",
        "jaxtyping>=0.3.2,<0.4",
        "jinja2>=3.1.6,<4",
        "markupsafe>=2.1,<4",
        "ml-collections>=1.0,<2",
        "ml-dtypes>=0.5,<1",
        "numpy>=2.0,<3",
        "opencv-python-headless>=4.13,<5",  # augmentation
        "optax>=0.2.4,<0.3",
        "orbax-checkpoint>=0.12,<0.13",
        "pillow>=10.4,<14",
        "pycocotools>=2.0.8,<3",
        "scipy>=1.13,<2",
        "tensorboardX>=2.6.2,<3",
        "tensorflow-datasets>=4.9.7,<5",
        "tqdm>=4.66,<5",
    ],
    entry_points={"console_scripts": ["ssm-jax = ssm_jax.__main__:main"]},
    extras_require={
        "medical": MEDICAL,
        "serve": SERVE,
        "onnx": ONNX,
        "openvino": [*ONNX, "openvino>=2025.0,<2027"],
        "tracking": ["mlflow-skinny>=2.14,<4"],
        "cuda": ["jax[cuda12]>=0.7,<0.12"],
        "test": [
            *MEDICAL,
            *ONNX,
            *SERVE,
            "beartype>=0.21,<1",
            "httpx2>=2,<3",  # starlette's test client
            "hypothesis>=6.100,<7",
            "import-linter>=2.5,<3",
            "matplotlib>=3.9,<4",
            "mypy>=2.0,<3",
            "playwright>=1.50,<2",  # drives a Chromium that is installed; without one tests skip
            "pre-commit>=4.0,<5",
            "pytest>=8.3,<10",
            "pytest-xdist>=3.6,<4",
            "ruff>=0.15,<0.18",
            "setuptools>=77,<85",  # builds the wheel that a test looks into
        ],
        "docs": [
            "matplotlib>=3.9,<4",
            "mkdocs>=1.6,<2",
            "mkdocs-jupyter>=0.25,<0.27",
            "mkdocs-material>=9.5,<10",
            "mkdocstrings[python]>=0.29,<2",
        ],
    },
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
    ],
)
