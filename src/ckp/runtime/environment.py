"""Settings of a process from its environment variables, and errors that name the variable."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import BeforeValidator, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from ckp.kits.errors import InvalidInput


def _port(value: object) -> int:
    text = str(value)
    if not (text.isascii() and text.isdigit() and int(text) <= 65535):
        raise ValueError(f"{text!r} is not a port number: write one from 0 to 65535")
    return int(text)


Port = Annotated[int, BeforeValidator(_port)]
"""A TCP port; 0 lets the system choose one."""


class EnvironmentSettings(BaseSettings):
    """A field `name` is read from the variable `<PREFIX>_NAME`, or from its alias; one that is empty counts as not set.

    Validators raise ValueError with what is wrong and what to write. Values are files and addresses, never secrets: an error shows them.
    """

    model_config = SettingsConfigDict(frozen=True, env_ignore_empty=True, populate_by_name=True, extra="ignore")

    @classmethod
    def from_environment(cls) -> Self:
        """Read the variables.

        Raises:
            InvalidInput: names each variable that is wrong or missing.
        """
        try:
            return cls()
        except ValidationError as error:
            problems = []
            for problem in error.errors(include_url=False):
                if problem["type"] == "missing":
                    reason = "it is not set"
                else:
                    reason = str(problem.get("ctx", {}).get("error") or f"{problem['input']!r}: {problem['msg']}")
                problems.append(f"{cls._variable(str(problem['loc'][0]) if problem['loc'] else '')}: {reason}")
            raise InvalidInput(problems[0], details="\n".join(problems[1:])) from None

    @classmethod
    def _variable(cls, field: str) -> str:
        """The environment variable of a field, which an error names by its name or by its alias."""
        return field if field not in cls.model_fields else f"{cls.model_config.get('env_prefix', '')}{field}".upper()
