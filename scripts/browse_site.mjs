// Opens every page of the built site in a real browser: no dead link or picture, no error, no request to the outside.
//
//     npm install --no-save playwright-core && node scripts/browse_site.mjs site /usr/bin/chromium [PICTURES]
//
// With PICTURES, a folder, it leaves a picture of each page there. It is not part of the tests, which have no browser.
import { createServer } from "node:http";
import { readdirSync, readFileSync, existsSync, statSync, mkdirSync } from "node:fs";
import { join, resolve, extname } from "node:path";
import { chromium } from "playwright-core";

const [folder, executablePath, pictures] = process.argv.slice(2);
const root = resolve(folder);
const kinds = { ".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml", ".json": "application/json" };
const server = createServer((request, response) => {
  const path = join(root, decodeURIComponent(new URL(request.url, "http://x").pathname));
  if (!existsSync(path) || statSync(path).isDirectory()) return response.writeHead(404).end();
  response.writeHead(200, { "Content-Type": kinds[extname(path)] ?? "application/octet-stream" }).end(readFileSync(path));
}).listen(0, "127.0.0.1");
await new Promise((ready) => server.once("listening", ready));
const home = `http://127.0.0.1:${server.address().port}/`;

const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
const page = await browser.newPage({ viewport: { width: 1280, height: 900 } });
const faults = new Set();
const ids = new Map();
const wanted = [];
let here = "";
page.on("request", (request) => {
  if (!request.url().startsWith(home) && !/^(data|blob):/.test(request.url())) faults.add(`${here}: asks for ${request.url()}`);
});
page.on("response", (response) => response.status() >= 400 && faults.add(`${here}: ${response.status()} for ${response.url()}`));
page.on("pageerror", (error) => faults.add(`${here}: ${error.message}`));

const pages = readdirSync(root, { recursive: true }).filter((name) => name.endsWith(".html") && name !== "404.html");
for (here of pages) {
  await page.goto(home + here, { waitUntil: "load" });
  const found = await page.evaluate(() => ({
    ids: [...document.querySelectorAll("[id]")].map((each) => each.id),
    links: [...document.querySelectorAll("a[href]")].map((each) => each.href),
    pictures: [...document.images].filter((each) => each.complete && !each.naturalWidth).map((each) => each.src),
    wide: document.documentElement.scrollWidth > innerWidth,
  }));
  ids.set(here, new Set(found.ids));
  found.pictures.forEach((each) => faults.add(`${here}: no picture ${each}`));
  if (found.wide) faults.add(`${here}: wider than the window`);
  wanted.push(...found.links.filter((each) => each.startsWith(home)).map((each) => [here, each.slice(home.length)]));
  if (pictures && !here.startsWith("source/")) {
    mkdirSync(pictures, { recursive: true });
    await page.screenshot({ path: join(pictures, here.replaceAll("/", "_").replace(".html", ".png")) });
  }
}
for (const [from, link] of wanted) {
  const [path, anchor] = link.split("#");
  const target = decodeURIComponent(path) || "index.html";
  if (!existsSync(join(root, target))) faults.add(`${from}: dead link ${link}`);
  else if (anchor && ids.has(target) && !ids.get(target).has(decodeURIComponent(anchor))) faults.add(`${from}: no place ${link}`);
}
await page.goto(home + "index.html");
await page.fill("input.md-search__input", "AFFB");
const first = await page.locator(".md-search-result__item a").first().textContent({ timeout: 10000 });
await browser.close();
server.close();
console.log(`${pages.length} pages, ${wanted.length} links; the search for AFFB finds: ${first.trim().split("\n")[0]}`);
console.log([...faults].join("\n") || "no faults");
process.exit(faults.size ? 1 : 0);
