"""Names the packages: those of src/, and conf/ as terrafm_tg.conf; all else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(packages=[*find_packages("src"), "terrafm_tg.conf"], package_dir={"": "src", "terrafm_tg.conf": "conf"})
