/** The same request as curl or Python code, and the answer as JSON, to copy. */

import { $, announce } from "../common/dom.js";
import { apiKey, imagePath, query } from "../common/server.js";

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`; // for a POSIX shell
const absolute = (path) => new URL(path, document.baseURI).href;

function curl({ item, key }) {
  const auth = apiKey() ? ` -H "Authorization: Bearer $FC7_API_KEY"` : "";
  if (key !== undefined) return `curl${auth} ${quoted(absolute(`${imagePath(key)}/similar?k=6`))}`;
  const url = absolute(`v1/search${query({ k: 6, include: "classes,novelty" })}`);
  return `curl${auth} --data-binary ${quoted(`@${item.name}`)} \\\n  -H 'Content-Type: ${item.file.type || "application/octet-stream"}' ${quoted(url)}`;
}

function python({ item, key }) {
  const auth = apiKey() ? `headers = {"Authorization": f"Bearer {os.environ['FC7_API_KEY']}"}\n` : "";
  const headers = apiKey() ? ", headers=headers" : "";
  const imports = `${apiKey() ? "import os\n\n" : ""}import requests\n\n${auth}`;
  const lines = key !== undefined
    ? `answer = requests.get(\n    ${JSON.stringify(absolute(`${imagePath(key)}/similar`))},\n    params={"k": 6}${headers},\n)`
    : `with open(${JSON.stringify(item.name)}, "rb") as picture:\n    answer = requests.post(\n        ${JSON.stringify(absolute("v1/search"))},\n`
      + `        params={"k": 6, "include": "classes,novelty"},\n        data=picture${headers},\n    )`;
  return `${imports}${lines}\nanswer.raise_for_status()\nprint(answer.json())\n`;
}

/** Offer the code and the answer. The text is also shown, because browsers copy only on HTTPS or on this machine. */
export function showCopy(source, { answer }) {
  const texts = { curl: () => curl(source), Python: () => python(source), JSON: () => JSON.stringify(answer, null, 2) };
  const [code, status] = [$("copied"), $("copy-status")];
  code.hidden = true;
  status.textContent = "";
  $("copy").onclick = async ({ target }) => {
    if (!target.matches("button")) return;
    code.textContent = texts[target.textContent]();
    code.hidden = false;
    const done = await navigator.clipboard?.writeText(code.textContent).then(() => true, () => false);
    status.textContent = done ? "Copied." : "Select and copy the text below.";
    announce(status.textContent);
  };
}
