"""What reports must look like: the project's own JSON Schema, and the part of SARIF's that is written.

SARIF's own schema (OASIS, 2.1.0) allows no property that it does not know, in no object but the property bags. So does
this one; it knows those that pytest-pgleak writes, with the types and the required ones of the standard. Beyond it are
GitHub's demands: docs.github.com, "SARIF support for code scanning".
"""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema

ROOT = Path(__file__).parent.parent
REPORT = json.loads((ROOT / "docs" / "report.schema.json").read_text(encoding="utf-8"))


def without_additions(schema):
    """The same schema, but a field that it does not describe is an error."""
    if isinstance(schema, list):
        return [without_additions(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: without_additions(value) for name, value in schema.items()}
    return closed | ({"additionalProperties": False} if "properties" in schema else {})


def check_report(text):
    """Check a JSON report, and return it."""
    report = json.loads(text)
    jsonschema.Draft202012Validator.check_schema(REPORT)
    jsonschema.validate(report, REPORT, jsonschema.Draft202012Validator)
    jsonschema.validate(report, without_additions(REPORT), jsonschema.Draft202012Validator)
    return report


def thing(*required, **properties):
    return {"type": "object", "required": list(required), "properties": properties, "additionalProperties": False}


def list_of(items, **more):
    return {"type": "array", "items": items, **more}


STRING = {"type": "string", "minLength": 1}
NUMBER = {"type": "integer"}
INDEX = {"type": "integer", "minimum": 0}
BAG = {"type": "object"}
URI = STRING | {"pattern": r"^[A-Za-z0-9\-._~!$&'()*+,;=:@/?#%]+$"}
LEVEL = {"enum": ["none", "note", "warning", "error"]}
MESSAGE = thing("text", text=STRING)
ARTIFACT = thing("uri", "uriBaseId", uri=URI | {"not": {"pattern": "^(/|[a-z]+:|\\.\\.)"}}, uriBaseId=STRING)
REGION = thing("startLine", startLine={"type": "integer", "minimum": 1})
PHYSICAL = thing("artifactLocation", artifactLocation=ARTIFACT, region=REGION)
LOCATION = thing(
    "physicalLocation",
    id=INDEX,
    physicalLocation=PHYSICAL,
    logicalLocations=list_of(thing(name=STRING, kind=STRING), uniqueItems=True),
    message=MESSAGE,
)
RULE = thing(
    # The standard asks for the id, GitHub for the others.
    *("id", "shortDescription", "fullDescription", "help"),
    id=STRING,
    name=STRING | {"maxLength": 255},
    shortDescription=thing("text", text=STRING | {"maxLength": 1024}),
    fullDescription=thing("text", text=STRING | {"maxLength": 1024}),
    help=MESSAGE,
    helpUri=URI,
    defaultConfiguration=thing(level={"enum": ["note", "warning", "error"]}),
    properties=thing(tags=list_of(STRING, uniqueItems=True)),
)
RESULT = thing(
    *("ruleId", "message", "locations", "partialFingerprints"),
    ruleId=STRING,
    ruleIndex=INDEX,
    level=LEVEL,
    message=MESSAGE,
    locations=list_of(LOCATION, minItems=1, maxItems=1),
    relatedLocations=list_of(LOCATION, uniqueItems=True),
    partialFingerprints={"type": "object", "additionalProperties": STRING, "minProperties": 1},
    occurrenceCount={"type": "integer", "minimum": 1},
    properties=BAG,
)
NOTIFICATION = thing(
    "message", level=LEVEL, message=MESSAGE, associatedRule=thing(id=STRING, index=INDEX), descriptor=BAG
)
INVOCATION = thing(
    "executionSuccessful",
    executionSuccessful={"type": "boolean"},
    exitCode=NUMBER,
    toolExecutionNotifications=list_of(NOTIFICATION),
)
DRIVER = thing(
    *("name", "semanticVersion", "rules"),
    name=STRING,
    semanticVersion=STRING | {"pattern": r"^\d+\.\d+\.\d+"},
    informationUri=URI,
    rules=list_of(RULE, uniqueItems=True),
)
RUN = thing(
    *("tool", "results"),
    tool=thing("driver", driver=DRIVER),
    originalUriBaseIds={"type": "object", "additionalProperties": thing(description=MESSAGE)},
    invocations=list_of(INVOCATION),
    results=list_of(RESULT),
)
SARIF = thing(
    *("version", "runs"), **{"$schema": URI}, version={"const": "2.1.0"}, runs=list_of(RUN, minItems=1, maxItems=1)
)


def check_sarif(text):
    """Check a SARIF report, and return its one run."""
    log = json.loads(text)
    jsonschema.validate(log, SARIF, jsonschema.Draft202012Validator)
    run = log["runs"][0]
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert len(set(rules)) == len(rules)
    assert all(rules[result["ruleIndex"]] == result["ruleId"] for result in run["results"])
    bases = {location["uriBaseId"] for location in artifacts(run["results"])}
    assert bases <= set(run["originalUriBaseIds"])
    return run


def artifacts(part):
    """All artifactLocation objects in a part of the file."""
    if isinstance(part, list):
        return [each for item in part for each in artifacts(item)]
    if not isinstance(part, dict):
        return []
    own = [part["artifactLocation"]] if "artifactLocation" in part else []
    return own + [each for item in part.values() for each in artifacts(item)]
