"""Makes the config reference from `ssm_jax/config.py` while the site is built."""

import html
import inspect
import re

from ssm_jax import config

MARK = "<!-- config reference -->"
# Sections by the names of variables in the source.
SECTIONS = {
    "evaluation": "eval",
    "named": "classes",
    "phantom": "data.phantom",
    "augment": "data.augment",
}
FIELD = re.compile(r"^    (?P<name>[a-z]\w*)(?:: [^=]+)? = (?P<value>.*?)(?:  # (?P<comment>.*))?$")


def comments(lines):
    """Comments at the end of assignments such as `name: int = 3  # of what`, by name."""
    found = {}
    for line in lines:
        match = FIELD.match(line.replace("    config.", "    ", 1))
        if match and match["comment"]:
            found[match["name"]] = match["comment"]
    return found


def reference():
    """One Markdown table a section: field, default, meaning."""
    model = comments(inspect.getsource(config.ModelConfig).splitlines())
    source = inspect.getsource(config.default_config) + inspect.getsource(config.data_section)
    others = {}
    pattern = r"^    (?:config\.)?((?:\w+\.)?\w+) = .*?  # (.*)$"
    for name, comment in re.findall(pattern, source, re.MULTILINE):
        section, _, field = name.rpartition(".")
        section = SECTIONS.get(section, section)
        others[f"{section}.{field}".removeprefix(".")] = comment
    others |= {f"model.{name}": comment for name, comment in model.items()}
    return tables(config.default_config().to_dict(), others)


def tables(values, meanings, prefix=""):
    """Markdown of a section and, after it, of the sections in it."""
    lines, below = [], []
    for name, value in values.items():
        if isinstance(value, dict):
            below += ["", f"## {prefix}{name}", "", *tables(value, meanings, f"{prefix}{name}.")]
        else:
            meaning = html.escape(meanings.get(prefix + name, "")).replace("|", "\\|")
            lines.append(f"| `{prefix}{name}` | `{value!r}` | {meaning} |")
    if lines:
        lines = ["| field | default | meaning |", "| --- | --- | --- |", *lines]
    return [*lines, *below]


def on_page_markdown(markdown, **_):
    """mkdocs calls this for each page."""
    if MARK not in markdown:
        return markdown
    return markdown.replace(MARK, "\n".join(reference()))
