"""Compare with another restorer: it restores a folder, and `sgpn test` scores both on the same faces.

Here the other method is OpenCV's median filter. GFPGAN, CodeFormer or any other program takes its place: let it restore the
folder `inputs`, and keep the names of the files.
"""

from pathlib import Path

import cv2

from sgpn_model import cli

cli.main(["align", "--demo", "-o", "demo"])
Path("compare.yml").write_text("_base_: options/test/open_val.yml\nname: compare\nmetrics: [psnr, ssim]\n")

# The degraded faces, as files; then what the other method makes of them.
cli.main(["test", "compare.yml", "--data", "demo", "--device", "cpu", "-o", "first", "--save-inputs", "inputs"])
Path("other").mkdir(exist_ok=True)
for path in Path("inputs").glob("*.png"):
    cv2.imwrite(f"other/{path.name}", cv2.medianBlur(cv2.imread(str(path)), 3))

cli.main(["test", "compare.yml", "--data", "demo", "--device", "cpu", "-o", "report", "--restorer", "median=other"])
print(Path("report/report.md").read_text(encoding="utf-8"))
