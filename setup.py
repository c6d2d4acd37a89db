"The notebooks that studies execute, and what they read, lie beside the package, and travel inside it."
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithNotebooks(build_py):
    def run(self):
        super().run()
        if self.editable_mode: return
        for path in sorted(path for folder in ("experiments", "figures") for path in Path("nbs", folder).iterdir() if path.suffix in (".ipynb", ".json")):
            self.mkpath(str(Path(self.build_lib, "abs_lab", path.parent)))
            self.copy_file(str(path), str(Path(self.build_lib, "abs_lab", path)))


setup(cmdclass=dict(build_py=WithNotebooks))
