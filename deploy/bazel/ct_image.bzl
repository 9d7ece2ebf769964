"""`bazel run` of a ct_image stores an image that rules_oci built as one that ct runs. docs/image-import.md explains it."""

_SAFE = "abcdefghijklmnopqrstuvwxyz0123456789._-"

def _is_name(text):
    for character in text.elems():
        if character not in _SAFE:
            return False
    return len(text) > 0 and len(text) <= 64 and text[0] not in "._-"

def _ct_image_impl(ctx):
    name = ctx.attr.image_name or ctx.label.name
    for text in [name, ctx.attr.kernel_of]:
        if not _is_name(text):
            fail("%s is no name of an image: lower case letters, digits, `.`, `_` and `-`" % repr(text))
    layout = ctx.file.image
    script = ctx.actions.declare_file(ctx.label.name + ".sh")
    flags = ["--name", name, "--kernel-of", ctx.attr.kernel_of]
    if ctx.attr.allow_setuid:
        flags.append("--allow-setuid")
    # `bazel run` starts it in the runfiles, where the layout lies under its short path.
    ctx.actions.write(
        script,
        "#!/bin/sh\nexec ct image import \"oci:$PWD/%s\" %s \"$@\"\n" % (layout.short_path, " ".join(flags)),
        is_executable = True,
    )
    return [DefaultInfo(executable = script, runfiles = ctx.runfiles(files = [layout]))]

ct_image = rule(
    implementation = _ct_image_impl,
    doc = "Imports an OCI layout into ct when it is run.",
    executable = True,
    attrs = {
        "image": attr.label(
            doc = "An oci_image of rules_oci, or whatever else gives a directory in OCI layout.",
            allow_single_file = True,
            mandatory = True,
        ),
        "image_name": attr.string(doc = "Name of the image in ct; the target's if absent."),
        "kernel_of": attr.string(default = "debian-12", doc = "Image of ct whose kernel it gets."),
        "allow_setuid": attr.bool(doc = "Take set-uid files and file capabilities, without these rights."),
    },
)
