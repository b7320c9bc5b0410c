"""A Sphinx extension: what search engines, previews and language models read of the book.

One setting, ``repository`` in ``_config.yml``, turns on everything that needs an address: links to
the repository, "edit this page", Colab, Binder, and with them absolute addresses in previews and a
site map. As long as it is empty the book names no address.
"""

import re
from pathlib import Path
from urllib.parse import urlsplit
from xml.sax.saxutils import escape

from docutils import nodes
from PIL import Image
from sphinx.application import Sphinx
from sphinx.config import Config

BUTTONS = ("use_repository_button", "use_issues_button", "use_edit_page_button")
LAUNCHERS = {
    "colab_url": "https://colab.research.google.com",
    "binderhub_url": "https://mybinder.org",
    "notebook_interface": "jupyterlab",
}
PICTURE = "_static/evolution.png"
DRAWN = 100  # pixels per inch for which the house style draws
LONGEST = 200  # characters of a description
UNUSED = "thebe"  # a service for live code that the theme loads twice and that we do not use


def pages_address(repository: str) -> str:
    """Address under which a repository's pages are published, with a slash at its end."""
    parts = urlsplit(repository)
    if not parts.netloc:
        return ""
    owner, _, name = parts.path.strip("/").partition("/")
    return f"https://{owner}.{parts.netloc.split('.')[0]}.io/{name}/"


def set_addresses(app: Sphinx, config: Config) -> None:
    """Turn the one setting into those of the theme."""
    config.html_context.setdefault("default_mode", "auto")
    repository = config.repository.strip().rstrip("/")
    if not repository:
        return
    config.html_theme_options |= dict.fromkeys(BUTTONS, True)
    config.html_theme_options |= {
        "repository_url": repository,
        "repository_branch": config.repository_branch,
        "path_to_docs": "",
        "launch_buttons": LAUNCHERS,
    }
    config.html_baseurl = config.html_baseurl or pages_address(repository)


def description(doctree: nodes.document) -> str:
    """Return the first sentences of a page, plain and short."""
    for paragraph in doctree.findall(nodes.paragraph):
        if isinstance(paragraph.parent, nodes.section):
            return shortened(paragraph.astext())
    return ""


def shortened(text: str) -> str:
    """Return as many whole sentences, or at least words, as a preview shows."""
    text = re.sub(r"\s+", " ", text).strip()
    if len(text) <= LONGEST:
        return text
    start = text[:LONGEST]
    sentences = re.match(r"(.*[.!?:]) ", start)
    return sentences[1] if sentences else start.rpartition(" ")[0] + " ..."


def meta(key: str, name: str, content: str) -> str:
    """One element of a page's head."""
    text = escape(content, {'"': "&quot;"})
    return f'<meta {key}="{name}" content="{text}" />\n'


def add_head(
    app: Sphinx, page: str, template: str, context: dict, doctree: nodes.document | None
) -> None:
    """Describe a page to previews; drop the scripts that it does not use."""
    for kind in ("script_files", "css_files"):
        context[kind] = [one for one in context[kind] if UNUSED not in str(one).lower()]
    if doctree is None:
        return
    # entries of a bibliography have a role of their own, which a list must not contain
    context["body"] = context["body"].replace('<div role="list" class="cita', '<div class="cita')
    base = app.config.html_baseurl
    text = description(doctree)
    head = meta("name", "description", text) if text else ""
    previews = {
        "title": re.sub(r"<[^>]+>", "", context["title"]),
        "type": "article",
        "site_name": app.config.html_title or app.config.project,
        "description": text,
        "url": base and f"{base}{page}.html",
        "image": base and f"{base}{PICTURE}",
    }
    for name, content in previews.items():
        if content:
            head += meta("property", f"og:{name}", content)
    context["metatags"] = context.get("metatags", "") + head


def drop_unused(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Take the configuration of a service that we do not use out of a page."""
    for raw in list(doctree.findall(nodes.raw)):
        if re.search(rf"x-{UNUSED}-config|<script>kernelName", raw.astext()):
            raw.parent.remove(raw)


def size_figures(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Give figures of notebooks their size in inches, however many pixels they have."""
    for image in doctree.findall(nodes.image):
        path = Path(app.srcdir) / image["uri"]
        if "jupyter_execute" in path.parts and path.suffix == ".png" and "width" not in image:
            with Image.open(path) as picture:
                resolution = picture.info.get("dpi", (DRAWN, DRAWN))[0]
                image["width"] = f"{picture.width * DRAWN / max(resolution, DRAWN):.0f}px"


def write_lists(app: Sphinx, failed: Exception | None) -> None:
    """Write the book's list of pages: for language models, and for search engines."""
    if failed or app.builder.format != "html":
        return
    out = Path(app.outdir)
    names = reading_order(app)
    lines = [f"# {app.config.html_title or app.config.project}", ""]
    if text := description(app.env.get_doctree(names[0])):
        lines += [f"> {text}", ""]
    base = app.config.html_baseurl or ""
    lines.append("## Pages\n")
    for name in names:
        text = description(app.env.get_doctree(name))
        lines.append(f"- [{app.env.titles[name].astext()}]({base}{name}.html): {text}")
    (out / "llms.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if base:
        urls = "\n".join(f"<url><loc>{escape(base + name)}.html</loc></url>" for name in names)
        head = '<?xml version="1.0" encoding="utf-8"?>\n'
        space = "http://www.sitemaps.org/schemas/sitemap/0.9"
        text = f'{head}<urlset xmlns="{space}">\n{urls}\n</urlset>\n'
        (out / "sitemap.xml").write_text(text, encoding="utf-8")


def reading_order(app: Sphinx) -> list[str]:
    """Names of all pages as a reader meets them."""
    found: list[str] = []

    def walk(name: str) -> None:
        found.append(name)
        for child in app.env.toctree_includes.get(name, []):
            walk(child)

    walk(app.config.root_doc)
    return found


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the setting and what follows from it."""
    app.add_config_value("repository", "", "html")
    app.add_config_value("repository_branch", "main", "html")
    app.connect("config-inited", set_addresses, priority=100)
    app.connect("html-page-context", add_head, priority=900)
    app.connect("doctree-resolved", size_figures)
    app.connect("doctree-resolved", drop_unused, priority=900)
    app.connect("build-finished", write_lists)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
