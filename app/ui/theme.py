"""The look: one quiet theme for light and dark, made of local fonts and the page's own style sheet."""

from importlib.resources import files
from pathlib import Path

import gradio as gr
from gradio.themes.utils.colors import Color

ACCENT = Color(
    name="accent",
    c50="#eff5ff",
    c100="#dfe9fe",
    c200="#c5d6fc",
    c300="#9dbbf8",
    c400="#6f97f1",
    c500="#4675e6",
    c600="#315fd3",
    c700="#284cae",
    c800="#24418c",
    c900="#20386f",
    c950="#152347",
)
NEUTRAL = Color(
    name="neutral",
    c50="#f8f9fb",
    c100="#f0f2f5",
    c200="#e2e5ea",
    c300="#cbd0d8",
    c400="#98a0ad",
    c500="#69717f",
    c600="#4c5462",
    c700="#373e4a",
    c800="#22272f",
    c900="#181c22",
    c950="#101317",
)
SANS = ["ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "Cantarell", "Noto Sans", "sans-serif"]
STYLES = ("style.css", "people.css", "things.css", "findings.css", "slider.css", "dataset.css", "devices.css")
SCRIPTS = ("page.js", "picture.js", "faces.js", "things.js", "findings.js", "slider.js", "dataset.js", "models.js")
MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace"]


def theme() -> gr.themes.Base:
    """The theme; every colour that the style sheet uses is one of its variables."""
    return gr.themes.Base(
        primary_hue=ACCENT,
        secondary_hue=ACCENT,
        neutral_hue=NEUTRAL,
        font=SANS,
        font_mono=MONO,
        text_size=gr.themes.sizes.text_md,
        radius_size=gr.themes.sizes.radius_md,
        spacing_size=gr.themes.sizes.spacing_md,
    ).set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color="*neutral_900",
        body_text_color_dark="*neutral_100",
        body_text_color_subdued="*neutral_500",
        body_text_color_subdued_dark="*neutral_400",
        background_fill_primary="white",
        background_fill_primary_dark="*neutral_900",
        background_fill_secondary="*neutral_100",
        background_fill_secondary_dark="*neutral_800",
        border_color_primary="*neutral_200",
        border_color_primary_dark="#2c323c",
        border_color_accent="*primary_400",
        border_color_accent_dark="*primary_500",
        color_accent="*primary_600",
        color_accent_soft="*primary_50",
        color_accent_soft_dark="#1c2a49",
        block_background_fill="transparent",
        block_background_fill_dark="transparent",
        block_border_width="0px",
        block_border_width_dark="0px",
        block_shadow="none",
        block_padding="0px",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_title_text_color="*neutral_600",
        block_title_text_color_dark="*neutral_300",
        block_title_text_weight="550",
        block_title_text_size="13px",
        block_info_text_color="*neutral_500",
        block_info_text_color_dark="*neutral_400",
        block_info_text_size="12px",
        panel_background_fill="transparent",
        panel_background_fill_dark="transparent",
        panel_border_width="0px",
        input_background_fill="white",
        input_background_fill_dark="#12151a",
        input_border_color="*neutral_300",
        input_border_color_dark="#333a45",
        input_border_width="1px",
        input_shadow="none",
        input_shadow_focus="0 0 0 3px #4675e633",
        input_shadow_focus_dark="0 0 0 3px #6f97f133",
        input_border_color_focus="*primary_500",
        input_border_color_focus_dark="*primary_400",
        input_placeholder_color="*neutral_400",
        input_placeholder_color_dark="*neutral_500",
        input_padding="9px 11px",
        slider_color="*primary_500",
        slider_color_dark="*primary_400",
        checkbox_background_color_selected="*primary_600",
        checkbox_background_color_selected_dark="*primary_500",
        checkbox_border_color="*neutral_300",
        checkbox_border_color_dark="#47505e",
        checkbox_label_background_fill="transparent",
        checkbox_label_background_fill_dark="transparent",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_500",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
        button_primary_border_color="transparent",
        button_secondary_background_fill="white",
        button_secondary_background_fill_hover="*neutral_100",
        button_secondary_background_fill_dark="*neutral_800",
        button_secondary_background_fill_hover_dark="*neutral_700",
        button_secondary_border_color="*neutral_300",
        button_secondary_border_color_dark="#3a414d",
        button_secondary_text_color="*neutral_800",
        button_secondary_text_color_dark="*neutral_100",
        button_border_width="1px",
        button_large_radius="8px",
        button_small_radius="7px",
        button_large_text_weight="600",
        button_small_text_size="13px",
        button_transition="background-color .12s, border-color .12s",
        layout_gap="14px",
        form_gap_width="0px",
        section_header_text_weight="600",
        error_background_fill="#fdf1f1",
        error_background_fill_dark="#2d1719",
        error_border_color="#efc4c4",
        error_border_color_dark="#6b2b30",
        error_text_color="#a3262c",
        error_text_color_dark="#f5a3a6",
    )


def style_sheet() -> str:
    """The page's own CSS."""
    package = files(__package__)
    return "".join(package.joinpath(name).read_text(encoding="utf-8") for name in STYLES)


def icon() -> Path:
    """The page's icon, as a file."""
    return Path(__file__).with_name("icon.svg")


def head() -> str:
    """What goes into the page's head: its own script, in line, so that nothing is fetched from elsewhere."""
    package = files(__package__)
    script = "".join(package.joinpath(name).read_text(encoding="utf-8") for name in SCRIPTS)
    return f"<script>{script}</script>"
