"""YAML files that people write, read so that no mistake passes silently: encodings, keys given twice, broken syntax."""

import codecs
import re
from pathlib import Path
from typing import Any

import yaml

from geokr_core.errors import ConfigError

_FOREIGN_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def read_yaml(path: Path) -> Any:
    """The content of a YAML file. A byte-order mark of UTF-8 is skipped.

    Raises:
        FileNotFoundError: there is no such file.
        ConfigError: it is not UTF-8, not YAML, or gives a key twice; the message says where.
    """
    raw = path.read_bytes()
    for mark, name in _FOREIGN_MARKS.items():
        if raw.startswith(mark):
            raise ConfigError(f"{path}: the file is {name} text, expected UTF-8. Save it as UTF-8 in your editor.")
    try:
        text = raw.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise ConfigError(
            f"{path}: line {line} is not UTF-8 text (byte {raw[error.start]:#04x}): the file has another encoding, such as a "
            "Windows code page or GBK. Save it as UTF-8 in your editor."
        ) from error
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str) -> Any:
    """The content of YAML text.

    Args:
        text: the text.
        name: what messages call it.

    Raises:
        ConfigError: it is not YAML, or gives a key twice; the message says where.
    """
    try:
        loader = _Strict(text)
        loader.name = name
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
        hint = " (tabs cannot indent; use spaces)" if "'\\t'" in str(error.problem) else ""
        raise ConfigError(f"{name}: not valid YAML: {where}{error.problem}{hint}.") from error
    except ConfigError:
        raise
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"{name}: not valid YAML: {error}.") from error


_NOT_DECIMAL = re.compile(r"[-+]?0[0-7_]*[0-7]|.*:.*")
"""Whole numbers that YAML 1.1 reads otherwise than people do: ``010`` is 8, ``1:30`` is 90."""


class _Strict(yaml.SafeLoader):
    """Refuses a key that is given twice, and numbers that would be read otherwise than they look."""

    def construct_decimal(self, node: yaml.ScalarNode) -> int:
        value = int(self.construct_yaml_int(node))
        if _NOT_DECIMAL.fullmatch(node.value):
            raise ConfigError(
                f"{self.name}: line {node.start_mark.line + 1}: YAML reads {node.value} as {value}. Write a number without a leading "
                "zero or colon, or text between quotes."
            )
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[Any, int] = {}
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge" or not isinstance(key_node, yaml.ScalarNode):
                continue
            key = self.construct_object(key_node)
            line = key_node.start_mark.line + 1
            if key in lines:
                raise ConfigError(
                    f"{self.name}: `{key}` is given twice, in line {lines[key]} and in line {line}; the first would be lost. "
                    "Keep one."
                )
            lines[key] = line
        return super().construct_mapping(node, deep)


_Strict.add_constructor("tag:yaml.org,2002:int", _Strict.construct_decimal)
