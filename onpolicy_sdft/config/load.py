"""Load a run's options from YAML files and dotted flags, and write them back."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar, get_args, get_origin, get_type_hints

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings
from jsonargparse.typing import register_type

from onpolicy_sdft.config.check import check
from onpolicy_sdft.config.examples import expected_of
from onpolicy_sdft.config.help import HelpAll, short_help
from onpolicy_sdft.config.schema import EvalSetConfig, RunConfig
from onpolicy_sdft.config.shipped import here_or_shipped
from onpolicy_sdft.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Plan = TypeVar("Plan", bound="DataclassInstance")

#: Options that had another name, and the one they have.
RENAMED = {
    "train.start_from": "train.init_from",
    "train.carry": "train.adapter_handoff",
    "carry": "adapter_handoff",
    "eval.seed_scores": "eval.base_scores",
    "seed_scores": "base_scores",
    "rollout.view": "rollout.prompt",
}

_YAML = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # that in C takes a tenth of the time

set_parsing_settings(docstring_parse_attribute_docstrings=True)


if TYPE_CHECKING:
    Verbatim: TypeAlias = Any
else:

    class Verbatim:
        """Any value, as YAML reads it: of ``Any`` the parser would read text once more, and make 'a: b' a mapping."""

    register_type(Verbatim, lambda value: value, lambda value: value, type_check=lambda value, kind: True)


class Parser(ArgumentParser):
    """A parser to which a later list of records is a list of its own.

    jsonargparse lets the items of a list inherit what they leave out from an earlier list of the same length, place
    by place: an evaluation set would take the limit of another one. An empty list between the two keeps them apart.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.record_lists: list[str] = []
        self.has_short_help = False
        self._known_defaults: tuple[int, Namespace] | None = None

    def add_options(self, kind: type[Any], section: str | None = None) -> None:
        """Add an option for each field of a dataclass, under ``section.`` where one is given."""
        self.add_class_arguments(kind, section)
        actions = {action.dest: action for action in self._actions}
        for name, hint in get_type_hints(kind).items():
            option = f"{section}.{name}" if section else name
            if get_origin(hint) is list and dataclasses.is_dataclass(get_args(hint)[0]):
                self.record_lists.append(option)
            if values := _literals(hint):  # jsonargparse's own completer does not know them
                actions[option].completer = lambda values=values, **asked: values  # type: ignore[attr-defined]

    def get_defaults(self, *arguments: Any, **options: Any) -> Namespace:
        """Return every option's default, worked out once: jsonargparse asks five times in a parse."""
        if self._known_defaults is None or self._known_defaults[0] != len(self._actions):
            self._known_defaults = len(self._actions), super().get_defaults(*arguments, **options)
        return self._known_defaults[1].clone()

    def print_help(self, *arguments: Any, **options: Any) -> None:
        """Print the common options, where there are too many to read."""
        if self.has_short_help:
            print(short_help(self))
        else:
            super().print_help(*arguments, **options)

    def parse_args(self, args: Sequence[str] | None = None, *others: Any, **options: Any) -> Any:  # type: ignore[override]
        """Parse arguments; see the class."""
        given = sys.argv[1:] if args is None else list(args)
        return super().parse_args(self._with_empty_lists(_with_shipped(given)), *others, **options)

    def _with_empty_lists(self, arguments: Sequence[str]) -> list[str]:
        found: list[str] = []
        for index, argument in enumerate(arguments):
            flag, has_value, value = argument.partition("=")
            if flag == "--config":
                file = value if has_value else "".join(arguments[index + 1 : index + 2])
                given = read_yaml(file)
                found += [f"--{name}=[]" for name in self.record_lists if _sets(given, name)]
            elif flag.removeprefix("--") in self.record_lists:
                found.append(f"{flag}=[]")
            found.append(argument)
        return found


def _literals(hint: Any) -> list[str]:
    """Return the values of ``Literal[...]``, or of one that may be None as well."""
    kinds = [kind for kind in (hint, *get_args(hint)) if get_origin(kind) is Literal]
    return [str(value) for kind in kinds for value in get_args(kind)]


def _with_shipped(arguments: Sequence[str]) -> list[str]:
    """Return arguments in which a file of options that is not here is the one of that name that is shipped."""
    found: list[str] = []
    for argument in arguments:
        flag, has_value, value = argument.partition("=")
        if found[-1:] == ["--config"]:
            found.append(str(here_or_shipped(argument) or argument))
        elif flag == "--config" and has_value:
            found.append(f"--config={here_or_shipped(value) or value}")
        else:
            found.append(argument)
    return found


def read_yaml(file: str) -> Any:
    """Read a YAML file of options; nothing of one that is not there or no YAML, which the parser refuses.

    Raises:
        ConfigError: It is not UTF-8, a key stands twice in it, or a number is one only to YAML 1.1.
    """
    try:
        text = Path(file).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8: {error}. Fix: save it as UTF-8.") from error
    except (OSError, ValueError):
        return None
    try:
        loader = _YAML(text)
        node = loader.get_single_node()
        if node is None:
            raise ConfigError(f"{file} has no options: it is empty. Fix: give it some, or leave it out.")
        _refuse_twice(node, file, "")
        return loader.construct_document(node)
    except yaml.YAMLError:
        return None


def _refuse_twice(node: yaml.Node, file: str, place: str) -> None:
    """Refuse what YAML drops or rereads unsaid: a key's earlier value, and numbers of base 8 or 60."""
    if isinstance(node, yaml.ScalarNode):
        if node.tag == "tag:yaml.org,2002:int" and re.fullmatch(r"[-+]?0[0-7_]+|[-+]?[\d_]+(:[0-5]?\d)+", node.value):
            read = yaml.safe_load(node.value)
            raise ConfigError(
                f"{file}, line {node.start_mark.line + 1}: YAML reads {place.rstrip('.')}: {node.value} as {read}. "
                f"Fix: write {read}, or put it in quotes where it is a text."
            )
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_twice(item, file, place)
    elif isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in lines and name != "<<":
                raise ConfigError(
                    f"{file}, line {line}: the key {place}{name} stands there twice (first in line {lines[name]}), and "
                    "YAML would drop the first. Fix: put both together, or take one out."
                )
            lines[name] = line
            _refuse_twice(value, file, f"{place}{name}.")


def _sets(options: Any, name: str) -> bool:
    """Whether options as YAML has them give one a value."""
    node = options
    for part in name.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    return node is not None


def make_parser(prog: str, description: str) -> Parser:
    """Return a parser with every option of :class:`RunConfig` as ``--section.field`` and ``--config FILE``."""
    parser = Parser(prog=prog, description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file of options; flags after it win.")
    parser.add_argument("--help_all", action=HelpAll, help="Show every option and exit.")
    for name, kind in get_type_hints(RunConfig).items():
        parser.add_options(kind, name)
    parser.has_short_help = True
    return parser


def parse_arguments(
    parser: ArgumentParser,
    arguments: Sequence[str],
    explained: Callable[[str, ArgumentParser], str] | None = None,
) -> Namespace:
    """Parse the command line.

    Args:
        parser: Of a verb.
        arguments: As typed.
        explained: Turns the parser's message into a line for people; None: :func:`explain`.

    Raises:
        ConfigError: With the field, the value and the nearest valid name.
    """
    try:
        return parser.parse_args(list(arguments))
    except (BrokenPipeError, ConfigError):  # somebody reads the first lines of the help; a file that says enough
        raise
    except (ArgumentError, OSError) as error:
        raise ConfigError((explained or explain)(str(error), parser)) from error
    except ValueError as error:  # a null byte, or half a character: no file can be called that
        raise ConfigError(f"An option has a character that is not usable ({error}). Fix: take it out.") from error


def parse(parser: ArgumentParser, arguments: Sequence[str]) -> tuple[RunConfig, Namespace]:
    """Parse the command line to a checked config.

    Returns:
        The config and the namespace, for what the verb added to the parser.

    Raises:
        ConfigError: With the field, the value and the nearest valid name.
    """
    namespace = parse_arguments(parser, arguments)
    config = to_config(parser, namespace)
    check(config)
    return config, namespace


def load_config(*files: str | Path, **overrides: Any) -> RunConfig:
    """Load a config from YAML files, later ones winning, with overrides by dotted name.

    Example: ``load_config("configs/online/quickstart.yaml", **{"train.max_steps": 3})``.

    Raises:
        ConfigError: As :func:`parse`.
    """
    arguments = [part for file in files for part in ("--config", str(file))]
    for name, value in overrides.items():
        text = _as_text(name, value)
        arguments.append(f"--{name}={text.removesuffix('...').strip()}")
    return parse(kept_parser("onpolicy_sdft"), arguments)[0]


def _as_text(name: str, value: Any) -> str:
    """Return the value of an option as it would be typed."""
    value = _plain(value)
    try:
        return value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True).strip()
    except yaml.YAMLError as error:
        raise ConfigError(
            f"{name}={value!r:.160} is {type(value).__name__}, which no option takes. Fix: text, a path, a number, "
            "true or false, None, or a list or dict of these."
        ) from error


@functools.cache
def kept_parser(prog: str) -> Parser:
    """Return the parser of runs, made once: it takes longer to make than to use, and plans load many configs."""
    return make_parser(prog, "")


def load_plan(kind: type[Plan], prog: str, description: str, arguments: Sequence[str]) -> Plan:
    """Parse the options of something made of many runs: a sequence, a comparison.

    Args:
        kind: Dataclass of the options.
        prog: Command, for messages.
        description: For ``--help``.
        arguments: ``--config FILE`` and flags; later ones win.

    Raises:
        ConfigError: As :func:`parse`.
    """
    parser = Parser(prog=prog, description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action="config", help="YAML file of options; flags after it win.")
    parser.add_options(kind)
    built = parser.instantiate(parse_arguments(parser, arguments))
    return kind(**{item.name: built[item.name] for item in dataclasses.fields(kind)})


def to_config(parser: ArgumentParser, namespace: Namespace) -> RunConfig:
    """Turn a parsed namespace into the config object."""
    sections = [section.name for section in dataclasses.fields(RunConfig)]
    for section in sections:
        if not isinstance(namespace.get(section), Namespace):
            raise ConfigError(
                f"{section}={namespace.get(section)!r} is not usable: {section} is a section of "
                f"options. Fix: name them, as in --{section}.OPTION VALUE."
            )
    built = parser.instantiate(namespace)
    for section in sections:
        _require_values(section, built[section])
    return RunConfig(**{section: built[section] for section in sections})


def dump_config(config: DataclassInstance) -> str:
    """Return the whole config as YAML that ``--config`` reads back."""
    text: str = yaml.safe_dump(_plain(dataclasses.asdict(config)), sort_keys=False)
    return text


def field_names(kind: type[Any] = RunConfig, prefix: str = "") -> list[str]:
    """List every option by dotted name."""
    names = []
    for item in dataclasses.fields(kind):
        default = item.default_factory() if item.default_factory is not dataclasses.MISSING else None
        if dataclasses.is_dataclass(default):
            names += field_names(type(default), f"{prefix}{item.name}.")
        else:
            names.append(prefix + item.name)
    return names


def by_dotted_name(config: RunConfig) -> dict[str, Any]:
    """Return every option's value by dotted name."""
    sections = dataclasses.asdict(config)
    return {f"{section}.{name}": value for section, options in sections.items() for name, value in options.items()}


def _plain(value: Any) -> Any:
    """Return a value as YAML has it: a program may give paths and numbers of numpy's."""
    if isinstance(value, dict):
        return {_plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Path | str):
        return str(value)
    value = value.tolist() if hasattr(value, "tolist") else value
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _require_values(section: str, value: Any) -> None:
    """Refuse ``null`` where an option has no such meaning."""
    hints = get_type_hints(type(value))
    for item in dataclasses.fields(value):
        if getattr(value, item.name) is None and type(None) not in get_args(hints[item.name]):
            raise ConfigError(f"{section}.{item.name}=null is not usable: give a value, or leave the option out.")


def explain(message: str, parser: ArgumentParser) -> str:
    """Say in one line which option or value was refused, and the nearest one that would not be."""
    place = ".".join(re.findall(r'Parser key "([\w.]+)"', message))
    if "class_path" in message:  # inside an item of eval.sets or eval.validation
        place = re.sub(r"^eval\.(sets|validation)\b", r"eval.\1[]", place)
    if "Expected a" in message and place:
        return _explain_value(message, place)
    text = " ".join(message.split())
    group = re.search(r"Group '([\w.]+)' does not accept", message)
    unknown = re.search(r"[Uu]nrecognized arguments: --([\w.]+)|[Oo]ption '([\w.]+)'", message)
    if unknown is None:
        return f"{text} See {parser.prog} --help."
    name = ".".join(part for part in (place, group and group[1], unknown[1] or unknown[2]) if part)
    if name in RENAMED:
        return f"The option {name} is called {RENAMED[name]} now. Fix: write {RENAMED[name]}."
    names = field_names(EvalSetConfig, place + ".") if place else [key for key, _ in parser.get_defaults().items()]
    near, section = _nearest_option(name, names), name.partition(".")[0]
    there = [known.partition(".")[2] for known in names if known.startswith(f"{section}.")]
    hint = f" The nearest option is {near!r}." if near else f" {section} has: {', '.join(there)}." if there else ""
    return f"There is no option {name!r}.{hint} See {parser.prog} --help."


def _explain_value(message: str, name: str) -> str:
    text = " ".join(message.split())
    given = re.search(r"Given value: (.*)$", text) or re.search(r"Got value: (.*)$", text)
    value = re.sub(r"^None$", "null", given[1]) if given else ""
    if nested := re.match(r"NestedArg\(key='([^']*)'", value):
        return f"There is no option '{name}.{nested[1]}': {name} has no options below it. Fix: --{name} VALUE."
    choices = list(dict.fromkeys(re.findall(r"'([^']*)'", " ".join(re.findall(r"typing\.Literal\[(.*?)\]", text)))))
    kinds = re.findall(r"Expected an? (.*?)(?=\.? Got value| - Expected| Given value|$)", text)
    wanted = [kind for kind in dict.fromkeys(kinds) if not kind.startswith(("typing.Literal", "dot import path"))]
    wanted = ["null" if "NoneType" in kind else re.sub(r"<class '(\w+)'>", r"\1", kind) for kind in wanted]
    wanted.sort(key="null".__eq__)  # versions of the parser differ in their order
    forms = expected_of(name, tuple(wanted))
    expected = forms or " or ".join([*map(repr, choices), *wanted]) or "a list of options, each with a name"
    return f"{name}={value!r:.160} is not usable: expected {expected}.{did_you_mean(value, choices)}"


def _nearest_option(name: str, names: Sequence[str]) -> str | None:
    """Find the option somebody may have meant: the same last word in another section, else similar spelling."""
    section, _, last = name.rpartition(".")
    same = [known for known in names if known.rpartition(".")[2] == last]
    if same:
        return difflib.get_close_matches(name, same, n=1, cutoff=0)[0]
    siblings = [known for known in names if section and known.rpartition(".")[0] == section]
    words = {known.rpartition(".")[2]: known for known in siblings or names}
    near = difflib.get_close_matches(last, words, n=1)
    return words[near[0]] if near else None
