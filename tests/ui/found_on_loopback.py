"""A short catalog for a server whose found pictures lie on loopback, where no server of the product would fetch them.

A browser test cannot ask a public host; in this server's process alone what the operator trusts counts as a result too.
"""

import os
from functools import partial

from app.core import found_pictures
from app.core.image_to_image import IMAGE_TO_IMAGE
from app.core.tag_image import TAG_IMAGE
from app.core.text_to_image import TEXT_TO_IMAGE
from app.core.web_search import WEB_SEARCH
from app.guarded_http import GuardedClient

found_pictures.GuardedClient = partial(GuardedClient, [os.environ["EIS_TRUSTED_HOSTS"]])
CATALOG = (TEXT_TO_IMAGE, IMAGE_TO_IMAGE, TAG_IMAGE, WEB_SEARCH)
