// Embeds two pictures and prints how alike they are: JavaScript, Node 18 or later.
import { readFile } from "node:fs/promises";

const url = process.env.LATENTD_URL ?? "http://127.0.0.1:8080";

async function embed(name) {
  const body = await readFile(new URL(name, import.meta.url));
  const reply = await fetch(`${url}/embed`, { method: "POST", headers: { "content-type": "image/jpeg" }, body });
  const json = await reply.json();
  if (!reply.ok) throw new Error(`${json.code}: ${json.detail}`);
  return json.results[0].embedding;
}

const [one, two] = await Promise.all(["outwear-1.jpg", "outwear-2.jpg"].map(embed));
// Vectors have norm 1, so the cosine is the dot product.
console.log(one.reduce((sum, a, i) => sum + a * two[i], 0).toFixed(4));
