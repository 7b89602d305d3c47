"What takes long and is the same in every process: done once, before a process of `forked` is forked."
from mlflow.utils.requirements_utils import warn_dependency_requirement_mismatches

warn_dependency_requirement_mismatches(["numpy"])   # MLflow reads the metadata of all packages that are installed
