// One command: src/ to the module that ships in the Python package, or (--npm) to the npm layout.
import { build } from "esbuild";

const common = {
  entryPoints: ["src/extension.ts"],
  bundle: true,
  minify: true,
  target: "es2021",
  charset: "utf8",
  legalComments: "none",
  jsx: "transform",
  logLevel: "warning",
};

if (process.argv.includes("--npm")) {
  const name = JSON.stringify("@segunlearn/ohif-extension");
  await build({ ...common, format: "esm", outfile: "dist/index.js" });
  await build({
    ...common,
    format: "cjs",
    outfile: "dist/index.umd.cjs",
    define: { "import.meta.url": "undefined" },
    banner: {
      js:
        "(function(r,f){if(typeof exports==='object'&&typeof module!=='undefined')f(module);" +
        "else if(typeof define==='function'&&define.amd)define([],function(){var m={exports:{}};f(m);return m.exports.default});" +
        `else{var m={exports:{}};f(m);r[${name}]=m.exports.default}})(typeof self!=='undefined'?self:this,function(module){`,
    },
    footer: { js: "});" },
  });
} else {
  const where = process.argv.find((a) => a.startsWith("--out="))?.slice(6);
  await build({
    ...common,
    format: "esm",
    outfile: where ?? "../segunlearn/app/ohif/extension.js",
  });
}
