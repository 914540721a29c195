"""What the tags of an rpm's main header may be: their types as rpm declares them (rpmtag.h), and how the arrays among them belong together."""

from __future__ import annotations

from typing import Iterator, Mapping, NamedTuple, Union

CHAR, INT8, INT16, INT32, INT64, STRING, BIN, STRING_ARRAY, I18N = 1, 2, 3, 4, 5, 6, 7, 8, 9
Value = Union[bytes, "tuple[int, ...]", "tuple[str, ...]"]
FILE_CAPABILITIES = 5010
ARCHIVE_SIZE = 1046
"""rpm lays it into the main header itself, from the signature header, and refuses a header that has it."""

_ONE_TEXT: tuple[int, ...] = (
    1000,
    1001,
    1002,
    1007,
    1010,
    1011,
    1014,
    1015,
    1020,
    1021,
    1022,
    1023,
    1024,
    1025,
    1026,
    1044,
    1064,
    1079,
    1094,
    1122,
    1123,
    1124,
    1125,
    1126,
)
_ONE_TEXT += (1132, 1151, 1152, 1155, 1196, 5012, 5013, 5014, 5015, 5016, 5034, 5062, 5096, 5098, 5099, 5100, 5101)
_TRANSLATED = (1004, 1005, 1016)
_ONE_NUMBER = (1003, 1006, 1008, 1009, 1046, 1106, 1127, 1128, 1129, 1195, 5011, 5017, 5018, 5019, 5020, 5021, 5022, 5023, 5024, 5025, 5026, 5091, 5093)
_NUMBERS = (1051, 1052, 1068, 1069, 1080, 1119, 1134, 1145, 5027, 5032, 5033, 5068, 5070, 5072, 5078, 5080, 5082, 5084, 5085)
_TEXTS: tuple[int, ...] = (
    1018,
    1019,
    1059,
    1060,
    1061,
    1062,
    1065,
    1066,
    1067,
    1081,
    1082,
    1089,
    1098,
    1099,
    1118,
    1120,
    1121,
    1133,
    1135,
    1142,
    1148,
    1149,
    1150,
    5000,
    5001,
)
_TEXTS += (5002, 5005, 5006, 5007, 5030, 5031, 5040, 5041, 5042, 5043, 5044, 5058, 5059, 5060, 5061, 5066, 5067, 5069, 5071, 5076, 5077, 5079, 5081, 5086)
_TEXTS += (5087, 5088, 5089, 5092, 5097)
_PROGRAMS = (1085, 1086, 1087, 1088, 1091, 1092, 1153, 1154)
OF_FILES = {
    **dict.fromkeys((1028, 1034, 1037, 1045, 1095, 1096, 1116, 1140, 1141, 1143, 1144, 5045), INT32),
    **dict.fromkeys((1027, 1035, 1036, 1039, 1040, 1097, 1117, 1147, FILE_CAPABILITIES, 5090), STRING_ARRAY),
    **dict.fromkeys((1030, 1033), INT16),
    1029: CHAR,
    5008: INT64,
}
"""Types of the tags that have one value for each file."""


class Kind(NamedTuple):
    """The three tags of a kind of relation, as primary.xml calls it."""

    names: int
    flags: int
    versions: int


RELATIONS = {
    "provides": Kind(1047, 1112, 1113),
    "requires": Kind(1049, 1048, 1050),
    "conflicts": Kind(1054, 1053, 1055),
    "obsoletes": Kind(1090, 1114, 1115),
    "recommends": Kind(5046, 5048, 5047),
    "suggests": Kind(5049, 5051, 5050),
    "supplements": Kind(5052, 5054, 5053),
    "enhances": Kind(5055, 5057, 5056),
}
_MORE_RELATIONS = (Kind(5035, 5037, 5036), Kind(1156, 1158, 1157), Kind(1159, 1161, 1160))
TYPES: dict[int, tuple[int, ...]] = {
    63: (BIN,),
    100: (STRING_ARRAY, STRING),
    **dict.fromkeys(_ONE_TEXT, (STRING,)),
    # nFPM writes texts without translations, and the programs of scripts, as single strings; rpm reads them so.
    **dict.fromkeys(_TRANSLATED, (I18N, STRING)),
    **dict.fromkeys(_PROGRAMS, (STRING_ARRAY, STRING)),
    **dict.fromkeys((*_ONE_NUMBER, *_NUMBERS), (INT32,)),
    **dict.fromkeys(_TEXTS, (STRING_ARRAY,)),
    **dict.fromkeys((5009, 271), (INT64,)),
    **dict.fromkeys((1012, 1013, 1043, 1146), (BIN,)),
    **{tag: (kind,) for tag, kind in OF_FILES.items()},
    **{tag: (STRING_ARRAY,) for kind in (*RELATIONS.values(), *_MORE_RELATIONS) for tag in (kind.names, kind.versions)},
    **{kind.flags: (INT32,) for kind in (*RELATIONS.values(), *_MORE_RELATIONS)},
}
# nFPM writes the algorithm of the files' digests (5011) once for each file; rpm reads the first.
_SINGLE = frozenset((*_ONE_NUMBER, 5009, 271)) - {5011}
LESS, GREATER, EQUAL = 2, 4, 8
COMPARISONS = {0: "", LESS: "LT", GREATER: "GT", EQUAL: "EQ", LESS | EQUAL: "LE", GREATER | EQUAL: "GE"}


class Relation(NamedTuple):
    """A relation to a package, file or capability, as createrepo_c writes it; "" for what it has not."""

    name: str
    comparison: str = ""
    epoch: str = ""
    version: str = ""
    release: str = ""


def faults(kinds: Mapping[int, int], tags: Mapping[int, Value]) -> Iterator[str]:
    """What rpm would refuse in the tags of a main header, or read otherwise than CKP does, in sentences.

    Args:
        kinds: the types of the tags.
    """
    files = len(tags.get(1117, ()))
    if files and not (1039 in tags and 1040 in tags):
        yield "it does not say who owns its files"
    for tag, value in tags.items():
        if (tag < 1000 and tag not in (63, 100)) or tag == ARCHIVE_SIZE:
            yield f"the tag {tag} belongs into a signature header"
        if tag not in TYPES:
            continue
        if kinds[tag] not in TYPES[tag]:
            yield f"the tag {tag} is of the type {kinds[tag]}, not of {TYPES[tag][0]}"
        elif tag in _SINGLE and len(value) != 1:
            yield f"the tag {tag} has {len(value)} values, not one"
        elif tag in OF_FILES and len(value) != files:
            yield f"the tag {tag} has {len(value)} values for {files} files"
    for kind in (*RELATIONS.values(), *_MORE_RELATIONS):
        if len({len(tags.get(tag, ())) for tag in kind}) > 1:
            yield f"the tags {', '.join(map(str, kind))} have different numbers of values"


def relations(tags: Mapping[int, Value], kind: str) -> Iterator[Relation]:
    """The relations of a kind (`requires`) in a header without faults. ValueError for one that can't be written in primary.xml."""
    names, flags, versions = (tags.get(tag, ()) for tag in RELATIONS[kind])
    for number, name in enumerate(names):
        flag, version = flags[number], versions[number]
        comparison = COMPARISONS.get(flag & 15) if isinstance(flag, int) else None
        if comparison is None or bool(comparison) != bool(version):
            raise ValueError(f"its {kind} has {name!r} with the flags {flag!r} and the version {version!r}")
        yield relation(str(name), comparison, str(version))


def relation(name: str, comparison: str, version: str) -> Relation:
    """A relation of `[epoch:]version[-release]`."""
    if not comparison:
        return Relation(name)
    epoch, colon, rest = version.partition(":")
    rest = rest if colon else version
    plain, _, release = rest.partition("-")
    return Relation(name, comparison, (epoch if colon else "") or "0", plain, release)
