"""What each route says about itself in the OpenAPI document: what it takes, gives, and can refuse."""

from typing import Annotated, Any

from msgspec import Meta

from libs.common.contracts.faults import Code
from libs.common.openapi import FORM, LINES, Answer, Body, Link, Operation, Parameter
from services.auth import shapes, trail
from services.auth.requests import CreateClient, CreateKey, Rotate, RotateSigning, Settable

_CLIENT = Parameter("client", str, "a client's id, which is its name", "path")
_KEY = Parameter("key", str, "an API key's id, not the key", "path")

# -- OAuth -----------------------------------------------------------------------------------------------------------

TOKEN = Operation(
    "Get an access token (RFC 6749 §4.4)",
    (Answer("a token, for five minutes", (shapes.TokenIssued,)),),
    Body(shapes.TokenForm, FORM),
)
REVOKE = Operation(
    "End one's own token or API key (RFC 7009)",
    (Answer("it does not count any more, if it ever did", content_type=None),),
    Body(shapes.OneTokenForm, FORM),
)
INTROSPECT = Operation(
    "Look at one's own token or API key (RFC 7662)",
    (Answer("what it says, or that it does not count", (shapes.Introspected,)),),
    Body(shapes.OneTokenForm, FORM),
)
JWKS = Operation("The keys that sign tokens (RFC 7517)", (Answer("public parts", (shapes.JwkSet,)),))
METADATA = Operation("Where everything is (RFC 8414)", (Answer("metadata", (shapes.Metadata,)),))

# -- clients ---------------------------------------------------------------------------------------------------------

_NAMED = {"client": "$response.body#/client_id"}
_CLIENT_LINKS = {
    "show": Link("GET /clients/{client}", _NAMED),
    "change": Link("PATCH /clients/{client}", _NAMED),
    "create_key": Link("POST /clients/{client}/keys", _NAMED),
    "list_keys": Link("GET /clients/{client}/keys", _NAMED),
    "rotate": Link("POST /clients/{client}/rotate", _NAMED),
    "disable": Link("POST /clients/{client}/disable", _NAMED),
    "enable": Link("POST /clients/{client}/enable", _NAMED),
    "drop_secret": Link("DELETE /clients/{client}/secret", _NAMED),
    "delete": Link("DELETE /clients/{client}", _NAMED),
}
_CHANGES = (Code.NOT_FOUND, Code.WRONG_STATE, Code.LAST_ADMINISTRATOR)
_READS_BODY = (Code.TOO_LARGE,)

CREATE_CLIENT = Operation(
    "Make a client",
    (Answer("made; its secret is shown this once", (shapes.NewClient,), 201, links=_CLIENT_LINKS),),
    Body(CreateClient, example={"name": "reports", "scopes": ["jobs:write", "jobs:read"]}),
    codes=(*_READS_BODY, Code.ALREADY_EXISTS),
)
LIST_CLIENTS = Operation("All clients", (Answer("by id", (shapes.ClientList,)),))
GET_CLIENT = Operation(
    "One client and its keys",
    (Answer("it", (shapes.ClientWithKeys,)),),
    parameters=(_CLIENT,),
)
UPDATE_CLIENT = Operation(
    "Change a client (JSON merge patch, RFC 7396)",
    (Answer("as it is now", (shapes.ClientShown,)),),
    Body(Settable, example={"policy": {"limits": {"queued": 100}}}, merges=True),
    (_CLIENT,),
    (*_READS_BODY, *_CHANGES, Code.ALREADY_EXISTS),
    about="What is named is set, null sets the default, the rest stays.",
)
DELETE_CLIENT = Operation(
    "Delete a client and its keys",
    (Answer("gone, with these keys", (shapes.ClientDeleted,)),),
    parameters=(_CLIENT,),
    codes=_CHANGES,
)
DISABLE_CLIENT = Operation(
    "Disable a client: everything of it ends at once",
    (Answer("as it is now", (shapes.ClientShown,)),),
    parameters=(_CLIENT,),
    codes=_CHANGES,
)
ENABLE_CLIENT = Operation(
    "Enable a client again",
    (Answer("as it is now", (shapes.ClientShown,)),),
    parameters=(_CLIENT,),
    codes=_CHANGES,
)
ROTATE_CLIENT = Operation(
    "Give a client a new secret",
    (Answer("its new secret is shown this once", (shapes.NewSecret,)),),
    Body(Rotate, required=False),
    (_CLIENT,),
    (*_READS_BODY, *_CHANGES),
)
DROP_SECRET = Operation(
    "Take a client's secrets away: it proves itself with its keys alone",
    (Answer("as it is now", (shapes.ClientShown,)),),
    parameters=(_CLIENT,),
    codes=_CHANGES,
)

# -- keys ------------------------------------------------------------------------------------------------------------

_OF_THE_KEY = {"key": "$response.body#/key_id"}
_KEY_LINKS = {"show": Link("GET /keys/{key}", _OF_THE_KEY), "revoke": Link("DELETE /keys/{key}", _OF_THE_KEY)}

CREATE_KEY = Operation(
    "Make an API key",
    (Answer("made; the key is shown this once", (shapes.NewKey,), 201, links=_KEY_LINKS),),
    Body(CreateKey, required=False),
    (_CLIENT,),
    _READS_BODY,
)
LIST_KEYS = Operation("All API keys", (Answer("of all clients", (shapes.KeyList,)),))
LIST_KEYS_OF_CLIENT = Operation(
    "A client's API keys", (Answer("all of them", (shapes.KeyList,)),), parameters=(_CLIENT,)
)
GET_KEY = Operation("One API key", (Answer("it, without its secret", (shapes.KeyShown,)),), parameters=(_KEY,))
REVOKE_KEY = Operation("Revoke an API key", (Answer("gone", (shapes.KeyRevoked,)),), parameters=(_KEY,))

# -- the service itself ----------------------------------------------------------------------------------------------

SIGNING_KEYS = Operation("The keys that sign tokens, and their states", (Answer("all", (shapes.SigningKeys,)),))
ROTATE_SIGNING = Operation(
    "Replace the key that signs tokens",
    (Answer("as they are now", (shapes.SigningKeys,)),),
    Body(RotateSigning, required=False),
    codes=_READS_BODY,
)

_Sequence = Annotated[int, Meta(ge=0, le=trail.MAX_SEQUENCE)]
_Time = Annotated[str, Meta(extra_json_schema={"format": "date-time"})]
_Text = Annotated[str, Meta(max_length=trail.MAX_TEXT)]

AUDIT = Operation(
    "Read the audit trail",
    (Answer("lines of JSON; the last one holds `end`", (dict[str, Any],), content_type=LINES),),
    parameters=(
        Parameter("after", _Sequence, "only what stands behind this sequence: the `upto` of the page before"),
        Parameter("limit", Annotated[int, Meta(ge=0, le=trail.MAX_LIMIT)], "records looked at for this page"),
        Parameter("since", _Time, "stored at or after"),
        Parameter("until", _Time, "stored before"),
        Parameter("action", _Text, "such as `client.create`; `client.*` takes all of them"),
        Parameter("actor", _Text, "a client's id"),
        Parameter("tail", Annotated[int, Meta(ge=0, le=trail.MAX_TAIL)], "instead of `after`: the newest so many"),
    ),
)
DESCRIPTION = Operation("This document", (Answer("OpenAPI 3.1", (dict[str, Any],)),))
