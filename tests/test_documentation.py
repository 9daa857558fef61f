"""The documents name every route, every setting, every key and every family."""

import re
from pathlib import Path

from pydantic import AliasChoices
from pydantic.fields import FieldInfo

from app.errors import EaselError
from app.faces.native import JobBody
from app.models.catalog import HOME, Catalog
from app.settings import Settings

README = (HOME / "README.md").read_text()
DOCS = "\n".join(path.read_text() for path in sorted((HOME / "docs").rglob("*.md"))) + README
NATIVE = (HOME / "docs" / "api.md").read_text()


def test_every_route_is_documented(service):
    paths = service.client.get("/openapi.json").json()["paths"]
    missing = [
        f"{method} {path}"
        for path, methods in paths.items()
        for method in map(str.upper, methods)
        if not re.search(rf"{method} {re.escape(path)}(?![\w/{{-])", DOCS)
    ]
    assert not missing, f"not documented: {missing}"


def test_the_readmes_table_of_settings_is_what_the_settings_say():
    expected = "\n".join(row_of(name, setting) for name, setting in Settings.model_fields.items())
    table = "\n".join(line for line in README.splitlines() if line.startswith("| `"))
    assert table == expected, f"README.md's table of settings should be:\n{expected}"


def row_of(name: str, setting: FieldInfo) -> str:
    """A row of the table: the variable, its default, its description and its other names."""
    aliases = setting.validation_alias
    names = aliases.choices if isinstance(aliases, AliasChoices) else [name.upper()]
    others = "".join(f"; another name: `{other}`" for other in names[1:])
    return f"| `{names[0]}` |{shown(setting.default)}| {setting.description}{others} |"


def shown(default: object) -> str:
    """A default as one would set it; nothing for one that is empty."""
    if default in (None, (), {}):
        return " "
    if isinstance(default, Path) and default.is_relative_to(HOME):
        default = default.relative_to(HOME)
    return f" `{str(default).lower() if isinstance(default, bool) else default}` "


def test_every_key_of_a_job_is_documented():
    missing = [name for name in JobBody.model_fields if f"`{name}`" not in NATIVE]
    assert not missing, f"not documented: {missing}"


def test_every_family_and_every_model_is_documented():
    models = list(Catalog([HOME], Path("nowhere")))
    missing = [m.family for m in models if f"{m.family}/" not in README]
    assert not missing, f"not documented: {missing}"
    missing = [m.name for m in models if f"`{m.name}`" not in DOCS]
    assert not missing, f"not documented: {missing}"


def test_every_error_code_is_documented():
    codes: set[str] = set()
    kinds: list[type[EaselError]] = [EaselError]
    for kind in kinds:
        codes.add(kind.code)
        kinds.extend(kind.__subclasses__())
    missing = sorted(code for code in codes if f"`{code}`" not in NATIVE)
    assert not missing, f"not documented: {missing}"


def test_the_tree_in_the_readme_shows_what_is_there():
    """A folder that the README shows exists, so that it is not a plan."""
    shown = re.findall(r"^(?:    )?([\w.-]+)/ ", README, re.MULTILINE)
    missing = [folder for folder in shown if not (HOME / folder).is_dir()]
    assert not missing, f"not documented: {missing}"


def test_every_room_is_in_the_plan_of_the_house():
    plan = (HOME / "docs" / "architecture.md").read_text()
    lists = ("faces", "commands")  # one file per dialect or command: its name says all
    rooms = [path.name for path in (HOME / "app").rglob("*.py") if path.parent.name not in lists]
    missing = [name for name in rooms if name != "__init__.py" and f"{name}`" not in plan]
    assert not missing, f"not documented: {missing}"
