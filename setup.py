"""What pyproject.toml cannot say: how Twisted finds our plugin, from a wheel and from an editable install; and files
that belong to no package."""

from glob import glob

from setuptools import find_packages, setup

setup(
    # One root for everything, so that an editable install is a line in a .pth file: Twisted looks for
    # plugins in the directories of sys.path, and would not see them behind an import hook.
    package_dir={"": "."},
    packages=find_packages(include=["criu_relay", "criu_relay.*"]),
    # The module alone, not the package: `twisted.plugins` is Twisted's.
    py_modules=["twisted.plugins.criu_relay_plugin"],
    package_data={"criu_relay": ["py.typed", "wire/*.pyi", "admin/*.html"]},
    data_files=[
        ("share/man/man1", glob("docs/man/*.1")),
        ("share/man/man8", glob("docs/man/*.8")),
        ("share/bash-completion/completions", ["conf/completions/criu-relay.bash"]),
        ("share/zsh/site-functions", ["conf/completions/_criu-relay"]),
        ("share/fish/vendor_completions.d", ["conf/completions/criu-relay.fish"]),
        ("share/criu-relay", glob("conf/*.toml")),
        ("share/criu-relay/systemd", glob("conf/systemd/*")),
        ("share/criu-relay/prometheus", glob("conf/prometheus/*")),
    ],
)
