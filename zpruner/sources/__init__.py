"""Where models and texts come from: a file in a Python package, the Hugging Face hub, or this machine."""

from zpruner.sources._changed import content_sha256 as content_sha256
from zpruner.sources._changed import file_states as file_states
from zpruner.sources._form import Remote as Remote
from zpruner.sources._hash import checked_sha256 as checked_sha256
from zpruner.sources._hash import file_sha256 as file_sha256
from zpruner.sources._hash import folder_sha256 as folder_sha256
from zpruner.sources._hash import require_content as require_content
from zpruner.sources._hash import texts_sha256 as texts_sha256
from zpruner.sources._hub import HubRef as HubRef
from zpruner.sources._hub import http_errors as http_errors
from zpruner.sources._model import FETCH_STEPS as FETCH_STEPS
from zpruner.sources._model import fetch_model as fetch_model
from zpruner.sources._model import load_tokenizer as load_tokenizer
from zpruner.sources._package import PackageFile as PackageFile
from zpruner.sources._parse import LocalPath as LocalPath
from zpruner.sources._parse import Source as Source
from zpruner.sources._parse import parse_source as parse_source
from zpruner.sources._resolve import hub_name as hub_name
from zpruner.sources._resolve import resolve_source as resolve_source
from zpruner.sources._text import Documents as Documents
from zpruner.sources._text import TokenTable as TokenTable
from zpruner.sources._text import read_text as read_text
from zpruner.sources._text_of import text_of as text_of
