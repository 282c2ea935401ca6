// Indexes a photograph, and prints its class and the most similar images.
// npm ci && npm run types && npm run build && node build/example.js photo.jpg
import { readFile } from "node:fs/promises";
import createClient from "openapi-fetch";
import type { paths } from "./fc7.js";

const url = process.env.SERVER_URL ?? "http://127.0.0.1:8000";
const key = process.env.API_KEY;
const client = createClient<paths>({ baseUrl: url, headers: key ? { Authorization: `Bearer ${key}` } : {} });

const path = process.argv[2] ?? "photo.jpg";
const image = `data:image/jpeg;base64,${(await readFile(path)).toString("base64")}`;

const added = await client.PUT("/v1/images/{key}", {
  params: { path: { key: path } },
  body: { image, metadata: { label: "example" } },
});
if (added.error) throw new Error(added.error.detail);
console.log(`${added.data.image.key}: ${added.data.outcome}`);

const classified = await client.POST("/v1/classify", { params: { query: { k: 3 } }, body: { image } });
if (classified.error) throw new Error(classified.error.detail);
for (const { label, probability } of classified.data.results[0]?.predictions ?? []) {
  console.log(`${label}: ${(100 * probability).toFixed(1)} %`);
}

const similar = await client.POST("/v1/search", { params: { query: { k: 6, where: ["label:example"] } }, body: { image } });
if (similar.error) throw new Error(similar.error.detail);
for (const { key, distance } of similar.data.results[0]?.neighbours ?? []) console.log(`${key}: ${distance.toFixed(1)}`);
