"""The chart's README and schema are those that values.yaml and the models make."""

from __future__ import annotations

import re
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from docs.make_chart_pages import list_pages
from solowire.runtime.settings.setting_paths import list_paths, to_variable
from tests.support.chart import CHART


@pytest.mark.parametrize(("path", "text"), list(list_pages()), ids=["README.md", "values.schema.json"])
def test_pages_are_as_they_are_made(path: Path, text: str) -> None:
    """`make chart` makes them anew."""
    assert path.read_text(encoding="utf-8") == text


def test_the_readmes_sidecar_is_one() -> None:
    """Kubernetes takes it, and its variables are settings of ours."""
    [text] = re.findall(r"```yaml\n(spec:.*?)```", (CHART / "README.md").read_text(), re.DOTALL)
    spec = yaml.safe_load(text)["spec"]
    [container] = spec["containers"]
    volumes = [{"name": mount["name"], "emptyDir": {}} for mount in container["volumeMounts"]]
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "named"}, "spec": {**spec, "volumes": volumes}}
    kubernetes_validate.validate(pod, "1.37.0", strict=True)
    assert {v["name"] for v in container["env"]} <= {to_variable(path) for path in list_paths()}


def test_the_readme_names_every_example() -> None:
    """Whoever reads it finds them."""
    readme = (CHART / "README.md").read_text()
    assert all(f"examples/{path.name}" in readme for path in (CHART / "examples").iterdir())
