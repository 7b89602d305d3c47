"All metadata comes from settings.ini. nbdev's own setup.py needs pkg_resources, which setuptools dropped."

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_namespace_packages, setup

config = ConfigParser(delimiters=["="])
config.read(Path(__file__).parent / "settings.ini", encoding="utf-8")
cfg = config["DEFAULT"]


def lines(key):
    return [o for o in cfg[key].splitlines() if o.strip()]


extras = {o: lines(f"{o}_requirements") for o in ("train", "serve", "openvino", "geo", "cluster")}
extras["dev"] = [*(r for o in extras.values() for r in o), *lines("dev_requirements")]
extras["raw"] = lines("raw_requirements")  # not in dev: what reads camera raw files is tested where it is installed
extras["bm3d"] = lines("bm3d_requirements")  # not in dev: its licence allows non-commercial use only

CLASSIFIERS = [
    "Development Status :: 3 - Alpha",
    "Intended Audience :: Science/Research",
    "Programming Language :: Python :: 3",
    *(f"Programming Language :: Python :: 3.{o}" for o in (11, 12, 13)),
    "Topic :: Scientific/Engineering :: Image Processing",
]
readme = Path("README.md")

setup(
    name=cfg["lib_name"],
    version=cfg["version"],
    description=cfg["description"],
    keywords=cfg["keywords"].split(),
    author=cfg["author"],
    author_email=cfg["author_email"],
    url=cfg["git_url"],
    project_urls={
        "Documentation": cfg["doc_host"] + cfg["doc_baseurl"],
        "Changes": cfg["git_url"] + "/blob/main/CHANGELOG.md",
    },
    long_description=readme.read_text("utf-8") if readme.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    classifiers=CLASSIFIERS,
    python_requires=">=" + cfg["min_python"],
    install_requires=lines("requirements"),
    extras_require=extras,
    entry_points={
        "console_scripts": lines("console_scripts"),
        "nbdev": ["agri_cae=agri_cae._modidx:d"],  # links between pages
    },
    packages=[
        *find_namespace_packages(include=["agri_cae*"], exclude=["*__pycache__*"]),
        "agri_cae.pipelines",
        "agri_cae.api",
    ],
    # what is no notebook's stands in a folder of its own
    package_dir={"agri_cae.pipelines": "nbs/pipelines", "agri_cae.api": "api"},
    package_data={
        "agri_cae.samples": ["*"],
        "agri_cae.weights": ["*.onnx", "*.json"],
        "agri_cae.pipelines": ["*.ipynb", "*.yaml"],
        "agri_cae.api": ["*.html"],
    },
)
