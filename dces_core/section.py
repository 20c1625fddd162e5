"""A section of settings: frozen, refusing what it does not know, and saying what is wrong in one sentence per field."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from dces_core.errors import UserError, quoted

MOST_SENTENCES, LONGEST = 5, 400  # about wrong fields in one message, and characters of what a rule says of one


class Section(BaseModel):
    """A frozen section that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


Kind = TypeVar("Kind", bound=Section)


def validate(kind: type[Kind], values: dict[str, Any], page: str) -> Kind:
    """As `parse`, for any kind of section; `page` lists its fields."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        items = error.errors()
        more = f" And {len(items) - MOST_SENTENCES} more." if len(items) > MOST_SENTENCES else ""
        raise UserError(" ".join(_sentence(item, page) for item in items[:MOST_SENTENCES]) + more) from None


def _sentence(item: Any, page: str) -> str:
    where = quoted(".".join(str(part) for part in item["loc"])).strip("'\"") or "settings"
    if item["type"] == "extra_forbidden":
        return f"{where} is not a setting; {page} lists them all."
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{message if len(message) <= LONGEST else message[:LONGEST] + '...'}."
    return f"{where} = {quoted(item['input'])} is not allowed: {message[0].lower()}{message[1:]}."
