"""What the server itself reads for a run is what the run's Pods could read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

from shallop.errors import ObjectStoreError
from shallop.pipelines.podends import ResultArtifact, TaskResult
from shallop.pipelines.staging import Staging
from shallop.settings import Settings


def staging_of(settings: Settings, *, web: bool = True) -> Staging:
    nobody: Any = None  # nothing is asked of the cluster before the refusal
    return Staging(nobody, "team", settings.staging / "run", "s3://bucket/root", settings.refused_path, web=web)


@pytest.mark.parametrize("name", ["link", "folder", "../../../../token"])
def test_an_output_that_leads_into_the_platform_is_not_stored(tmp_path: Path, name: str) -> None:
    staging = staging_of(Settings(home=tmp_path))
    outputs = Path(staging.local_root)
    (outputs / "folder").mkdir(parents=True)
    (tmp_path / "token").write_text("secret")
    for link in (outputs / "link", outputs / "folder" / "link"):
        link.symlink_to(tmp_path / "token")
    result = TaskResult("SUCCEEDED", artifacts={"data": [ResultArtifact("data", f"{outputs}/{name}")]})
    with pytest.raises(ObjectStoreError, match="belongs to the platform"):
        anyio.run(staging.store, result)


def test_the_server_asks_no_web_server_for_one_of_several_users(tmp_path: Path) -> None:
    staging = staging_of(Settings(home=tmp_path), web=False)
    with pytest.raises(ObjectStoreError, match="with several users"):
        anyio.run(staging.bring_to, "http://127.0.0.1:1/metadata", tmp_path / "volume", "metadata")
