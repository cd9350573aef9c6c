"""
Reading of uploaded packages: YAML or JSON documents, plain or in an archive, within limits of size and depth.

Nothing is written to disk and no code is run; what comes out are plain objects, which ``ir.parse_pipeline`` reads.
"""

from __future__ import annotations

import io
import tarfile
import zipfile
import zlib
from typing import Any

import yaml

from shallop.errors import BadRequestError, TooLargeError

__all__ = ["MAX_PACKAGE_BYTES", "load_package", "parse_documents"]

MAX_PACKAGE_BYTES = 32 * 1024 * 1024
MAX_NODES = 2_000_000  # of a document with its aliases expanded: a few lines of YAML can stand for more than memory


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """YAML as JSON has it: an unquoted date stays text, "<<" merges within limits."""

    _merged = 0

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        # Merges of merges multiply while the document is being read, before its size can be looked at.
        self._merged += len(node.value)
        if self._merged > MAX_NODES:
            raise yaml.YAMLError(f"its keys, with those merged by '<<', are more than {MAX_NODES}: write them out")


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def load_package(content: bytes, filename: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """
    Read the documents of an uploaded package: YAML or JSON, plain or inside ``.zip``, ``.tar.gz``.

    Nothing is written to disk: one member is read into memory, ``pipeline.yaml`` or else the first YAML file.

    Args:
        filename: as the client named it; only for messages, the content says what it is.

    Returns:
        The PipelineSpec and the PlatformSpec, the latter empty without one.

    Raises:
        TooLargeError: more than MAX_PACKAGE_BYTES, packed or unpacked.
        BadRequestError: not such a package.
    """
    if len(content) > MAX_PACKAGE_BYTES:
        raise TooLargeError(f"{filename}: {len(content)} bytes; a package has at most {MAX_PACKAGE_BYTES} bytes.")
    try:
        if content.startswith(b"PK\x03\x04"):
            content = _read_zip(content, filename)
        elif content.startswith(b"\x1f\x8b"):
            content = _read_tar(content, filename)
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        zlib.error,
        EOFError,
        OSError,
        RuntimeError,
        NotImplementedError,
    ) as e:
        raise BadRequestError(f"{filename}: the archive cannot be read ({e}): pack it again.") from e
    return parse_documents(content, filename)


def parse_documents(content: bytes | str, filename: str = "pipeline.yaml") -> tuple[dict[str, Any], dict[str, Any]]:
    """
    Read the YAML or JSON documents of one pipeline; see ``load_package``.

    Raises:
        BadRequestError: not YAML, not an object, or more than two documents.
    """
    try:
        documents = [document for document in yaml.load_all(content, _Loader) if document is not None]
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        raise BadRequestError(f"{filename}: not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError as error:
        raise BadRequestError(f"{filename}: nested too deeply for a pipeline.") from error
    if not 1 <= len(documents) <= 2 or not all(isinstance(document, dict) for document in documents):
        raise BadRequestError(
            f"{filename}: expected one object (PipelineSpec) and at most a second one (PlatformSpec), "
            f"found {len(documents)} documents: upload what 'kfp dsl compile' writes."
        )
    for document in documents:
        _refuse_expansion(document, filename)
    spec, platform = documents[0], documents[1] if len(documents) > 1 else {}
    if "pipeline_spec" in spec:
        spec, platform = spec["pipeline_spec"], spec.get("platform_spec") or platform
    return spec, platform


def _refuse_expansion(document: Any, filename: str) -> None:
    sizes: dict[int, int] = {}

    def size(node: Any) -> int:
        if not isinstance(node, dict | list):
            return 1
        if id(node) not in sizes:
            sizes[id(node)] = (
                MAX_NODES + 1
            )  # stands while the node is measured: a cycle through an alias counts as endless
            children = node.values() if isinstance(node, dict) else node
            sizes[id(node)] = 1 + sum(map(size, children))
        return sizes[id(node)]

    if size(document) > MAX_NODES:
        raise BadRequestError(f"{filename}: YAML aliases expand to more than {MAX_NODES} values: write them out.")
    if any(not isinstance(key, str) for key in document):
        raise BadRequestError(f"{filename}: the keys of the document must be text.")


def _read_zip(content: bytes, filename: str) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        name = _choose_member([info.filename for info in archive.infolist() if not info.is_dir()], filename)
        with archive.open(name) as member:
            return _limited(member.read(MAX_PACKAGE_BYTES + 1), filename)


def _read_tar(content: bytes, filename: str) -> bytes:
    plain = _limited(zlib.decompressobj(wbits=31).decompress(content, MAX_PACKAGE_BYTES + 1), filename)
    if plain[257:262] != b"ustar":
        return plain  # a single gzipped document
    with tarfile.open(fileobj=io.BytesIO(plain), mode="r:") as archive:
        # By name one could get a link of the same name that comes later.
        files = {member.name: member for member in archive.getmembers() if member.isfile()}
        member = archive.extractfile(files[_choose_member(list(files), filename)])
        return _limited(member.read(MAX_PACKAGE_BYTES + 1), filename) if member else b""


def _choose_member(names: list[str], filename: str) -> str:
    candidates = [name for name in names if name.endswith((".yaml", ".yml", ".json"))]
    for name in candidates:
        if name.rpartition("/")[2] == "pipeline.yaml":
            return name
    if not candidates:
        raise BadRequestError(f"{filename}: no pipeline.yaml and no other YAML file inside the archive.")
    return candidates[0]


def _limited(content: bytes, filename: str) -> bytes:
    if len(content) > MAX_PACKAGE_BYTES:
        raise TooLargeError(f"{filename}: unpacks to more than {MAX_PACKAGE_BYTES} bytes.")
    return content
