"""The ordered tuple of checkpoints that the service knows by name. Plain data: nothing is opened or fetched here.

How a row with `parts` is put together: a part of kind `checkpoint` is the base whose components serve wherever the row
brings none of its own; a part of kind `vae` takes the place of the base's autoencoder. `options` speaks to the loader:

    layout      diffusers (a folder with model_index.json) | single-file | component (the weights of one component)
                | folder (of files that the loader knows by name)
    folder      where in the repository the folder lies, for layout `folder`
    component   which one, for layout `component`: unet
    variant     the infix of the weight files' names in a diffusers folder: fp16
    token       what stands in the prompt for a textual inversion
    trigger     the words that a LoRA's author asks for; `format`: whose key names it has, kohya or diffusers
    timestep_spacing, prediction_type    what the weights were trained for, where their scheduler does not say so
    keep        only the tensors whose names begin so are kept of a published pickle
    store       fp16: 32-bit tensors are stored in 16 bits
    base        the one checkpoint that an addition was made for; `best_on`: the one that it beats higher ranks on
    encoder, faces, projection    what an IP-Adapter needs (see `app.models.catalog_ip_adapters`)
    denoiser_parameters    how many there are, of a network that is linear layers through and through
    zero_cond_t    the pictures that are shown count as free of noise; `format` gguf: a file in fewer bits
    shift       of the noise schedule that a distilled LoRA knows
    weights     which file of the folder holds the network, where it is a single file
    same_face, similar_face    cosines from which a face pack's faces count as one person's, and as people's who look
                alike
    head_dim    width of an attention head, which the shapes of an image encoder do not tell

A row's path is a folder where the layout is diffusers or folder, else the one weights file. What a LoRA recommends of
steps, guidance and scheduler goes before what its base does; the size is always the base's.
"""

from app.models.catalog_base import BASE
from app.models.catalog_controls import CONTROLNETS, PREPROCESSORS
from app.models.catalog_editing import EDITING
from app.models.catalog_enhancing import ENHANCING
from app.models.catalog_faces import FACES, IMAGE_ENCODERS
from app.models.catalog_identity import EMBEDDED, IDENTITY
from app.models.catalog_ip_adapters import IP_ADAPTERS
from app.models.catalog_qwen import QWEN
from app.models.catalog_segmenters import CUTTING
from app.models.catalog_taggers import TAGGERS
from app.models.spec import ModelSpec

CATALOG: tuple[ModelSpec, ...] = (
    *BASE,
    *IDENTITY,
    *IP_ADAPTERS,
    *EDITING,
    *QWEN,
    *FACES,
    *IMAGE_ENCODERS,
    *CONTROLNETS,
    *PREPROCESSORS,
    *CUTTING,
    *ENHANCING,
    *TAGGERS,
    *EMBEDDED,
)
