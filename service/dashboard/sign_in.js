// Signing in: an API key, from the address or typed, for a cookie that no script can read.

const $ = (id) => document.getElementById(id);

/** Exchange a key; the problem where it is not taken, else nothing. */
async function exchange(key) {
  const answer = await fetch("/v1/session", {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify({ key }),
  });
  return answer.ok ? null : answer.json();
}

/** Take the key out of an address such as /#key=tt_..., and out of the browser's history. */
async function useAddress() {
  const key = new URLSearchParams(location.hash.slice(1)).get("key");
  if (key === null) return;
  history.replaceState(null, "", location.pathname + location.search);
  await exchange(key);
}

/** Ask until a key is taken. */
function ask() {
  $("sign-in").hidden = false;
  document.querySelector("main").hidden = true;
  $("key").focus();
  return new Promise((done) => {
    $("sign-in").onsubmit = async (event) => {
      event.preventDefault();
      const problem = await exchange($("key").value.trim());
      $("sign-in-trouble").textContent = problem ? problem.detail : "";
      if (problem) return;
      $("key").value = "";
      $("sign-in").hidden = true;
      document.querySelector("main").hidden = false;
      done();
    };
  });
}

function offerSignOut() {
  $("sign-out").hidden = false;
  $("sign-out").onclick = async () => {
    await fetch("/v1/session", { method: "DELETE" });
    location.reload();
  };
}

/** Resolves when the service knows who asks. */
export async function signedIn() {
  await useAddress();
  let answer = await fetch("/v1/session");
  if (answer.status === 401) {
    await ask();
    answer = await fetch("/v1/session");
  }
  if (answer.ok && (await answer.json()).authentication) offerSignOut();
}
